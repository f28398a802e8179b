"""The audit explorer."""

from __future__ import annotations

from typing import Any

from django.contrib.auth.decorators import login_required
from django.core.paginator import Paginator
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render

from adapterhub.accounts.models import Scope
from adapterhub.api.errors import NotAllowed
from adapterhub.api.pages import allowed
from adapterhub.audit.models import AuditEvent, verify
from adapterhub.audit.tags import Tag

FILTERS = ("tag", "actor_name", "object_type", "object_id")


@login_required
def explorer(request: HttpRequest) -> HttpResponse:
    """Events of the projects that the user may audit, and whether their chains hold when asked."""
    projects = list(allowed(request, Scope.AUDIT))
    if not projects:
        raise NotAllowed("The audit trail needs the role auditor or admin in a project.")
    wanted = {name: request.GET[name] for name in FILTERS if request.GET.get(name)}
    events = AuditEvent.objects.filter(project__in=projects, **wanted).select_related("project")
    context: dict[str, Any] = {
        "page": Paginator(events, 50).get_page(request.GET.get("page")),
        "tags": [str(tag) for tag in Tag],
        "wanted": wanted,
        "verdicts": [verdict(project) for project in projects] if "verify" in request.GET else None,
    }
    return render(request, "audit/explorer.html", context)


def verdict(project: Any) -> dict[str, Any]:
    count, faults = verify(project)
    return {"project": project, "events": count, "faults": faults}
