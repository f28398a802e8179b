"""Two rank plans of one base model side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.contrib.auth.decorators import login_required
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render

from adapterhub.api.pages import visible_or_404
from adapterhub.charts import heat_map
from adapterhub.core.errors import Invalid
from training.models import RankAnalysis
from training.pages.runs import named

SHOWN_MODULES, OFFERED = 20, 20


@login_required
def compare_plans(request: HttpRequest, pk: str) -> HttpResponse:
    """Show the plans of two analyses side by side, with the modules whose ranks differ.

    `to` in the query names the other analysis; without it the plan is compared with itself. Raises Invalid as
    `require_alike` does, and Http404 for an analysis that the person does not see.
    """
    queryset = RankAnalysis.objects.select_related("project", "dataset", "base_model")
    pair = [visible_or_404(request, queryset, pk=key) for key in (pk, named(request.GET.get("to") or str(pk)))]
    require_alike(pair)
    ranks = [{module["name"]: module["rank"] for module in each.plan["modules"]} for each in pair]
    most = max(max(each.values()) for each in ranks)
    sides = [
        {"job": each, "heat": heat_map(ranks_of_plan, most)} for each, ranks_of_plan in zip(pair, ranks, strict=True)
    ]
    moved = differences(*ranks)
    context = {
        "sides": sides,
        "moved": moved[:SHOWN_MODULES],
        "more": len(moved) - SHOWN_MODULES,
        "same": len(ranks[0]) - len(moved),
    }
    return render(request, "training/compare_plans.html", context)


def require_alike(pair: Sequence[RankAnalysis]) -> None:
    """Check that both analyses have a plan for the same base model. Raises Invalid."""
    if not all(each.plan for each in pair):
        raise Invalid("Compare two analyses that have a plan: one of these has none yet.", field="to")
    if pair[0].base_model_id != pair[1].base_model_id:
        raise Invalid("These plans belong to different base models: their modules differ.", field="to")


def differences(one: dict[str, int], other: dict[str, int]) -> list[dict[str, Any]]:
    """Return the modules whose ranks differ, largest difference first; a module that a plan lacks has rank 0."""
    names = dict.fromkeys([*one, *other])
    ranks = {name: (one.get(name, 0), other.get(name, 0)) for name in names}
    rows: list[dict[str, Any]] = [
        {"module": name, "this": this, "other": that, "change": that - this}
        for name, (this, that) in ranks.items()
        if that != this
    ]
    return sorted(rows, key=lambda row: -abs(row["change"]))


def comparable(analysis: RankAnalysis) -> QuerySet[RankAnalysis]:
    """Return the OFFERED newest other analyses of the project that have a plan for the same base model."""
    others = RankAnalysis.objects.filter(project=analysis.project, base_model=analysis.base_model, plan__isnull=False)
    return others.exclude(pk=analysis.pk).select_related("dataset").defer("plan").order_by("-created_at")[:OFFERED]
