"""The pages of the audit explorer: the list of events, and one event with its changes."""

from __future__ import annotations

from typing import Any

from django.contrib.auth.decorators import login_required
from django.core.paginator import Paginator
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, render

from adapterhub.api.pages import allowed
from adapterhub.api.permissions import actor_of
from adapterhub.audit.access_log import observe
from adapterhub.audit.external.proof import judged
from adapterhub.audit.filters import AuditFilter
from adapterhub.audit.models import AuditEvent, Checkpoint
from adapterhub.audit.tags import Tag
from adapterhub.core.errors import NotAllowed
from adapterhub.core.tenancy import Scope, Tenant
from adapterhub.workspace import place_for_child

PAGE = 50


def audited(request: HttpRequest) -> QuerySet[Any]:
    """Return the projects whose trail the user may read.

    Raises NotAllowed if there are none, except for a superuser, for whom the list may be empty.
    """
    projects = allowed(request, Scope.AUDIT)
    if not projects.exists() and not request.user.is_superuser:
        raise NotAllowed("To read the audit trail you need the role auditor or admin in a project.")
    return projects


@login_required
def explorer(request: HttpRequest) -> HttpResponse:
    """Show the events of the projects that the user may audit, and record the reading.

    With `?verify` in the query, their chains are verified too. Raises NotAllowed if there is no such project.
    """
    projects = audited(request)
    form = AuditFilter(request.GET, projects=projects)
    context: dict[str, Any] = {
        "page": Paginator(form.events().defer("canonical"), PAGE).get_page(request.GET.get("page")),
        "form": form,
        "projects": projects,
        "verdicts": [verdict(project) for project in projects] if "verify" in request.GET else None,
    }
    observe(Tag.AUDIT_READ, by=actor_of(request), project=None, resource=request.get_full_path())
    return render(request, "audit/explorer.html", context, status=422 if form.errors else 200)


@login_required
def event(request: HttpRequest, pk: int) -> HttpResponse:
    """Show one event: every field, the values before and after, and its place in the chain. Records the reading.

    Raises Http404 for an event of a project that the user may not audit, and NotAllowed for who may audit none.
    """
    audit_event = get_object_or_404(AuditEvent.objects.select_related("project"), pk=pk, project__in=audited(request))
    observe(Tag.AUDIT_READ, by=actor_of(request), project=audit_event.project, resource=request.path)
    sealed = Checkpoint.objects.filter(project=audit_event.project, sequence__gte=audit_event.sequence).first()
    return render(request, "audit/event.html", {"event": audit_event, "sealed": sealed})


def verdict(project: Tenant) -> dict[str, Any]:
    """Verify the project's chain; return {project, events, faults, reach} for the page: `reach` is the whole Verdict.

    Raises TooMany if no more work of the project may run at once.
    """
    with place_for_child(project.pk):
        verdict = judged(project, [])
    return {"project": project, "events": verdict.events, "faults": verdict.faults, "reach": verdict}
