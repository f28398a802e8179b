"""A person and a run: what the form foresees, a browser that is closed in between, and the whole curve after it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from adapterhub.accounts.models import User
from registry.models import Adapter
from training.models import Dataset, RunMetric, TrainingRun
from training.runs.launch import launch_run


@pytest.fixture
def run(adapter: Adapter, dataset: Dataset, alice: User) -> TrainingRun:
    return launch_run(adapter=adapter, dataset=dataset, hyperparameters={"steps": 80}, by=alice.as_actor())


def log(run: TrainingRun, steps: Iterable[int]) -> None:
    for step in steps:
        values = {
            "loss": 2.2 + math.exp(-step / 12) + 0.08 * math.sin(step),
            "grad_norm": 0.5 + 1 / step,
            "learning_rate": 1e-3 * min(step / 4, 1),
            "tokens_per_second": 410.0 + 9 * math.cos(step),
            "memory_bytes": 1.9e9 + 1e6 * step,
        }
        RunMetric.objects.create(run=run, step=step, values=values)
    last = max(steps)
    TrainingRun.objects.filter(pk=run.pk).update(progress={"step": last, "total": 80, "eta_s": 3.1 * (80 - last)})


@pytest.mark.slow
def test_the_form_says_what_will_happen_while_it_is_filled(
    page: Any,
    adapter: Adapter,
    dataset: Dataset,
    tmp_path: Path,
) -> None:
    page.goto("/training/new/")
    page.get_by_label("Adapter", exact=True).select_option(label="dora")
    page.get_by_label("Dataset", exact=True).select_option(label="incidents")
    page.get_by_text("no gpu worker has reported a device yet").wait_for()
    page.locator("#id_batch_size").fill("7")
    page.locator("#id_batch_size").blur()
    page.get_by_text("batch_size: 7").wait_for()
    page.get_by_text("What would change it").wait_for()
    page.screenshot(path=tmp_path / "new-training.png", full_page=True)
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.screenshot(path=tmp_path / "new-training-phone.png", full_page=True)
    assert not TrainingRun.objects.exists()


@pytest.mark.slow
def test_a_closed_browser_changes_nothing_and_the_whole_curve_is_there(
    page: Any,
    browser: Any,
    run: TrainingRun,
    tmp_path: Path,
) -> None:
    log(run, range(1, 20))
    page.goto(f"/training/{run.pk}/")
    page.get_by_role("img", name="Training loss from step 1 to 19").wait_for()
    # Another page, so that the poll of this one stops, as it does with a browser that is closed.
    page.goto("about:blank")
    log(run, range(20, 61))
    TrainingRun.objects.filter(pk=run.pk).update(status="running", lease_expires_at="2100-01-01T00:00Z")
    page.goto(f"/training/{run.pk}/")
    page.get_by_role("img", name="Training loss from step 1 to 60").wait_for()
    log(run, range(61, 71))
    page.get_by_role("img", name="Training loss from step 1 to 70").wait_for()
    page.get_by_text("Step 70 of 80").wait_for()
    page.screenshot(path=tmp_path / "run.png", full_page=True)
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.screenshot(path=tmp_path / "run-phone.png", full_page=True)


@pytest.mark.slow
def test_a_run_without_javascript_and_an_estimate_on_a_phone(
    page: Any,
    run: TrainingRun,
    tmp_path: Path,
) -> None:
    log(run, range(1, 20))
    context = page.context.browser.new_context(
        base_url=page.url, java_script_enabled=False, storage_state=page.context.storage_state()
    )
    plain = context.new_page()
    plain.goto(f"/training/{run.pk}/")
    plain.get_by_role("img", name="Training loss from step 1 to 19").wait_for()
    plain.get_by_role("link", name="Reload").wait_for()
    plain.set_viewport_size({"width": 390, "height": 844})
    plain.goto(
        "/estimates/?base_model=llama-3.1-8b&device_gb=24&devices=1&rank=16&batch_size=1&max_length=2048"
        "&galore_rank=64&recompute=on"
    )
    plain.get_by_text("8,030,261,248 parameters").wait_for()
    plain.screenshot(path=tmp_path / "estimates-phone.png", full_page=True)
    plain.set_viewport_size({"width": 1440, "height": 900})
    plain.screenshot(path=tmp_path / "estimates.png", full_page=True)
    context.close()
