"""Checks of the rank analysis that plans a run's ranks: its plan, a budget for it, and its start values."""

from __future__ import annotations

from adapterhub.core.errors import Invalid
from adapterhub.jobs.models import JobStatus
from registry.models import BaseModel
from training.models.rank_analysis import RankAnalysis


def check_analysis(analysis: RankAnalysis | None, base_model: BaseModel) -> None:
    """Check that the analysis has a plan for this base model; an analysis of None passes. Raises Invalid."""
    if analysis is None:
        return
    if analysis.status != JobStatus.SUCCEEDED:
        raise Invalid(f"The analysis is {analysis.status}: it has no plan.", field="rank_analysis", code="no_plan")
    if analysis.base_model_id != base_model.pk:
        raise Invalid("The analysis belongs to another base model.", field="rank_analysis", code="wrong_base")


def check_budget(analysis: RankAnalysis | None, budget: dict[str, int] | None) -> None:
    """Check that the analysis can meet the budget, {kind: number}; a budget of None passes.

    Raises Invalid if it cannot, and for a budget without an analysis or with one that has no plan.
    """
    if budget is None:
        return
    if analysis is None:
        raise Invalid("A budget needs a rank_analysis to plan with: name one, or give a rank.", field="budget")
    analysis.reallocate(budget)


def takes_start_values(wanted: bool | None, analysis: RankAnalysis | None) -> bool:
    """Return True if the run is to take start values; with `wanted` None it takes them if the analysis has any.

    Raises Invalid if they are wanted but the analysis has none, and if the analysis has no plan.
    """
    there = bool(analysis and analysis.require_plan()["start_values"])
    if wanted and not there:
        raise Invalid(
            "The analysis has no start values: use one of the default preset, or leave out start_values.",
            field="start_values",
            code="no_start_values",
        )
    return there if wanted is None else wanted
