"""What a person does in a real browser: signs in, launches a training, promotes and rolls back."""

from __future__ import annotations

from typing import Any

import pytest

from adapterhub.accounts.models import User
from registry.models import AdapterVersion, Alias, Rollout
from training.models import Dataset, TrainingRun


def test_a_wrong_password_is_refused(browser: Any, site: str, alice: User) -> None:
    page = browser.new_page(base_url=site)
    page.goto("/login/")
    page.get_by_label("Username").fill("alice")
    page.get_by_label("Password").fill("guess")
    page.get_by_role("button", name="Sign in").click()
    page.get_by_text("Please enter a correct username and password").wait_for()
    page.close()


@pytest.mark.slow
def test_launch_a_training(page: Any, version: AdapterVersion, dataset: Dataset) -> None:
    page.get_by_role("link", name="Training", exact=True).click()
    page.get_by_role("link", name="New training").click()
    page.get_by_label("Adapter", exact=True).select_option(label="dora")
    page.get_by_label("Dataset", exact=True).select_option(label="incidents")
    page.locator("#id_steps").fill("7")
    page.get_by_role("button", name="Queue the run").click()
    page.get_by_text("queued").first.wait_for()
    run = TrainingRun.objects.get()
    assert run.hyperparameters["steps"] == 7
    # The page follows the run by itself: what a worker reports appears without a reload.
    TrainingRun.objects.filter(pk=run.pk).update(progress={"step": 3, "total": 7})
    page.get_by_text("Step 3 of 7").wait_for()
    page.locator("summary", has_text="Cancel").click()
    page.locator(".revoke").get_by_label("Reason").fill("The data was wrong.")
    page.get_by_role("button", name="Cancel").click()
    page.get_by_role("button", name="Resume").wait_for()
    run.refresh_from_db()
    assert run.status == "cancelled"


def test_promote_and_roll_back(page: Any, alias: Alias, candidate: AdapterVersion, alice: User) -> None:
    page.goto("/adapters/dora/v2/")
    page.get_by_label("Alias").select_option(label="compliance")
    page.locator("#id_reason").fill("lower loss")
    page.get_by_role("button", name="Start the rollout").click()
    page.get_by_text("until every healthy replica").wait_for()
    Rollout.objects.get().started(by=alice.as_actor())
    page.get_by_text("each user stays in their arm").wait_for()
    page.reload()
    page.locator("#promote-reason").fill("it holds")
    page.get_by_role("button", name="Promote").click()
    page.get_by_text("Everybody gets dora v2").wait_for()
    alias.refresh_from_db()
    assert alias.version == candidate
    page.locator("#rollback-reason").fill("3 a.m.")
    page.get_by_role("button", name="Roll back").click()
    page.get_by_text("Everybody gets dora v1").first.wait_for()
    alias.refresh_from_db()
    assert alias.version != candidate


@pytest.mark.parametrize(
    "path", ["/", "/adapters/dora/v2/", "/aliases/compliance/", "/datasets/", "/training/new/", "/audit/"]
)
@pytest.mark.slow
def test_no_page_is_wider_than_a_phone(
    page: Any, alias: Alias, candidate: AdapterVersion, dataset: Dataset, path: str
) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto(path)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
