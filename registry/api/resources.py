"""Common parts of the registry's REST resources: reading by name, order of pages, and references in bodies."""

from __future__ import annotations

from typing import Any

from django.db.models import Model
from django.http import Http404
from rest_framework import mixins

from adapterhub.api.pagination import NewestFirst
from adapterhub.api.permissions import require_scope, seen_in
from adapterhub.api.views import ProjectViewSet, Retrieving
from adapterhub.core.errors import Invalid
from adapterhub.core.references import REFERENCE, named
from registry import models


class Reading(ProjectViewSet, mixins.ListModelMixin, Retrieving):
    """A resource that can be listed and read."""


class Named(Reading):
    """A resource whose objects are named in their project: `dora`, or `eu.dora` where two projects have one."""

    lookup_value_regex = REFERENCE

    def get_object(self) -> Any:
        """Return the object that the path names, if the caller may act on it.

        Raises Http404 for one that the caller does not see, Conflict if several projects have one of this name, and
        NotAllowed.
        """
        rows = self.filter_queryset(self.get_queryset())
        thing = named(rows, self.project_path, self.lookup_field, self.kwargs[self.lookup_field])
        if thing is None:
            raise Http404
        self.check_object_permissions(self.request, thing)
        return thing


class BySlug(NewestFirst):
    """Pages of rows by slug."""

    ordering = "slug"


class ByName(NewestFirst):
    """Pages of rows by name."""

    ordering = "name"


def named_record(view: ProjectViewSet, model: type[Model], name: str, value: str, scope: str, field: str) -> Any:
    """Return the object that a request body names, and require the scope in its project.

    `name` is the field by which it is named. Raises Invalid for one that is not visible or whose project is archived,
    NotAllowed without the scope.
    """
    path = "adapter__project" if model is models.AdapterVersion else "project"
    visible = seen_in(model._default_manager.select_related(path), path, view.request)
    live = visible.filter(**{f"{path}__archived_at": None})
    record: Any = live.filter(served_name=value).first() if name == "served_name" else named(live, path, name, value)
    if record is None:
        raise Invalid(f"There is no {field} {value!r}, or you cannot see it.", field=field, code=f"unknown_{field}")
    require_scope(view.request, record.project, scope)
    return record
