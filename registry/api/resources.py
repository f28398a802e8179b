"""Common parts of the registry's REST resources: reading by name, order of pages, and names in request bodies."""

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
    """A resource whose objects are named in their project: `dora`, or `eu.dora` where several projects have one."""

    lookup_value_regex = REFERENCE

    def get_object(self) -> Any:
        """Return the object that the path names, if the caller may act on it.

        Raises Http404 if there is none that the caller sees, Conflict if several projects have one of this name, and
        NotAllowed without the action's scope.
        """
        rows = self.filter_queryset(self.get_queryset())
        thing = named(rows, self.project_path, self.lookup_field, self.kwargs[self.lookup_field])
        if thing is None:
            raise Http404
        self.check_object_permissions(self.request, thing)
        return thing


class BySlug(NewestFirst):
    """Pages of objects in the order of their slugs."""

    ordering = "slug"


class ByName(NewestFirst):
    """Pages of objects in the order of their names."""

    ordering = "name"


def named_record(view: ProjectViewSet, model: type[Model], name: str, value: str, scope: str, field: str) -> Any:
    """Return the object of `model` that a request body names by `value`, and require `scope` in its project.

    `name` is the model's field that `value` is looked up in. Raises Invalid, which blames `field`, for an object that
    the caller does not see or whose project is archived, and NotAllowed without the scope.
    """
    path = "adapter__project" if model is models.AdapterVersion else "project"
    visible = seen_in(model._default_manager.select_related(path), path, view.request)
    live = visible.filter(**{f"{path}__archived_at": None})
    record: Any = live.filter(served_name=value).first() if name == "served_name" else named(live, path, name, value)
    if record is None:
        raise Invalid(f"There is no {field} {value!r}, or you cannot see it.", field=field, code=f"unknown_{field}")
    require_scope(view.request, record.project, scope)
    return record
