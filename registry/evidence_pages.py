"""Pages of what can be said about a version, and of which version gave an answer."""

from __future__ import annotations

from typing import Any

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_POST

from adapterhub.accounts.models import Scope
from adapterhub.api.pages import mine
from adapterhub.api.permissions import actor_of, require_scope, scopes_in
from registry.api.evidence import other_version
from registry.comparison import compare
from registry.dossier import dossier
from registry.lineage import approvals_of
from registry.models import Dossier, Response
from registry.views import find_version, heat_map


@login_required
def show_dossier(request: HttpRequest, slug: str, number: int) -> HttpResponse:
    """As of now, or a frozen one by its digest."""
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
    version = find_version(request, slug, number)
    require_scope(request, version.project, Scope.PUBLISH)
    kept = Dossier.freeze(version, dossier(version), by=actor_of(request))
    messages.success(request, f"Frozen as {kept.digest[:12]}.")
    return redirect("dossier", slug=slug, number=number)


@login_required
def compare_versions(request: HttpRequest, slug: str, number: int) -> HttpResponse:
    version = find_version(request, slug, number)
    other = other_version(version, request.GET.get("to", ""))
    found = compare(version, other)
    context = {"version": version, "other": other, "found": found, "heat": distance_map(found["updates"])}
    return render(request, "registry/compare.html", context)


def distance_map(updates: list[dict[str, Any]]) -> dict[str, Any]:
    """The picture of the ranks, shaded by cosine distance: 0 = the same direction, 1 = at a right angle or beyond."""
    shares = {row["module"]: min(1.0, row["cosine_distance"] or 0.0) for row in updates}
    heat = heat_map({module: round(1000 * share) for module, share in shares.items()})
    for cell, (module, share) in zip(heat["cells"], shares.items(), strict=True):
        cell["opacity"] = round(0.05 + 0.95 * share, 2)
        cell["title"] = f"{module}: cosine distance {share:.3f}"
    return heat


@login_required
def answers(request: HttpRequest) -> HttpResponse:
    """Which version answered: by the X-Response-ID of an answer."""
    key = request.GET.get("id", "").strip()[:64]
    found = mine(request, Response.objects.select_related("version__adapter", "project")).filter(pk=key).first()
    approvals = approvals_of(found.version, found.alias_name) if found else []
    context = {"key": key, "answer": found, "approvals": approvals}
    return render(request, "registry/answers.html", context)
