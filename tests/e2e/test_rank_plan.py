"""A person plans ranks: slider, new ranks, a training with them."""

from __future__ import annotations

from typing import Any

import pytest

from adapterhub.accounts.models import User
from registry.models import Adapter
from tests.pages.plans import PLAN
from training.models import Dataset, RankAnalysis, TrainingRun


@pytest.fixture
def analysis(adapter: Adapter, dataset: Dataset, alice: User) -> RankAnalysis:
    launched = RankAnalysis.launch(
        project=adapter.project,
        base_model=adapter.base_model,
        dataset=dataset,
        by=alice.as_actor(),
        budget={"uniform_rank": 4},
        rank_max=8,
        quantum=2,
    )
    RankAnalysis.objects.filter(pk=launched.pk).update(plan=PLAN, status="succeeded")
    return launched


@pytest.mark.slow
def test_the_slider_plans_and_the_plan_is_trained(page: Any, analysis: RankAnalysis) -> None:
    page.goto(f"/rank-analyses/{analysis.pk}/")
    page.get_by_text("768 of 768").wait_for()
    slider = page.get_by_role("slider")
    slider.focus()
    for _ in range(2):
        slider.press("ArrowRight")
    page.get_by_role("heading", name="The plan at a budget of rank 6 everywhere").wait_for()
    page.get_by_text("1,152 of 1,152").wait_for()
    # The region was replaced without a reload: the slider still has the focus.
    assert slider.evaluate("slider => slider === document.activeElement")
    page.get_by_role("link", name="Train with this plan").click()
    assert page.get_by_label("Budget of the plan").input_value() == "6"
    assert page.get_by_label("Learning rate").input_value() == "0.004"
    page.get_by_label("Adapter", exact=True).select_option(label="dora")
    page.get_by_role("button", name="Queue the run").click()
    page.get_by_text("for uniform rank 6").wait_for()
    run = TrainingRun.objects.get()
    assert (run.rank_analysis, run.budget) == (analysis, {"uniform_rank": 6})
    assert run.hyperparameters["learning_rate"] == 0.004


@pytest.mark.slow
def test_the_plan_is_not_wider_than_a_phone(page: Any, analysis: RankAnalysis) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    for path in (f"/rank-analyses/{analysis.pk}/?uniform_rank=6", "/rank-analyses/new/", "/adapters/dora/"):
        page.goto(path)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, path
