"""Pages of a version's dossier, and of the search for the version that gave an answer."""

from __future__ import annotations

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_POST

from adapterhub.api.pages import visible_rows
from adapterhub.api.permissions import actor_of, require_scope, scopes_in
from adapterhub.core.tenancy import Scope
from registry.evidence.dossier import dossier
from registry.evidence.lineage import approvals_of
from registry.models import Dossier, Response
from registry.pages.adapters import find_version


@login_required
def show_dossier(request: HttpRequest, slug: str, number: int) -> HttpResponse:
    """Show the version's dossier as of now, or the frozen one whose digest the query string names.

    A digest that is not one of the version's counts as none. Raises Http404 if the person does not see the version.
    """
    version = find_version(request, slug, number)
    frozen = version.dossiers.filter(digest=request.GET.get("digest", "")).first()
    content = frozen.content if frozen else dossier(version)
    context = {
        "version": version,
        "frozen": frozen,
        "title": content["title"],
        "note": content["note"],
        "sections": {name: section for name, section in content.items() if name not in ("title", "note")},
        "dossiers": version.dossiers.all(),
        "may_freeze": Scope.PUBLISH in scopes_in(request, version.project),
    }
    return render(request, "registry/dossier.html", context)


@login_required
@require_POST
def freeze_dossier(request: HttpRequest, slug: str, number: int) -> HttpResponse:
    """Store a signed copy of the version's dossier as it is now, and redirect to the dossier.

    Raises Http404 if the person does not see the version, and NotAllowed without scope publish.
    """
    version = find_version(request, slug, number)
    require_scope(request, version.project, Scope.PUBLISH)
    frozen = Dossier.freeze(version, dossier(version), by=actor_of(request))
    messages.success(request, f"Frozen as {frozen.digest[:12]}.")
    return redirect("dossier", slug=slug, number=number)


@login_required
def answers(request: HttpRequest) -> HttpResponse:
    """Show the version that gave an answer, and the approvals behind it; `id` is the answer's X-Response-ID.

    No version is shown for an answer that does not exist or that the person may not see.
    """
    key = request.GET.get("id", "").strip()[:64]
    answer = (
        visible_rows(request, Response.objects.select_related("version__adapter__project", "project"))
        .filter(pk=key)
        .first()
    )
    approvals = approvals_of(answer.version, answer.alias_name) if answer else []
    context = {"key": key, "answer": answer, "approvals": approvals}
    return render(request, "registry/answers.html", context)
