"""An on-call person's page, in a real browser: it is read, followed, promoted and rolled back, wide and on a phone."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.utils.timezone import now

from adapterhub.accounts.models import User
from registry.models import AdapterVersion, Alias, Rollout, RolloutMinute
from registry.rollouts.controller import judge_and_act
from registry.serving.reconciler import RECONCILER

STEPS = [{"weight": 10, "hold_s": 600, "min_samples": 400}, {"weight": 50, "hold_s": 900, "min_samples": 1500}]
RAILS = [{"metric": "error_rate", "margin": 3}, {"metric": "latency", "margin": 0.5, "kind": "signal"}]


@pytest.fixture
def rollout(alias: Alias, candidate: AdapterVersion, alice: User) -> Rollout:
    rollout = Rollout.create(
        alias=alias,
        candidate=candidate,
        steps=STEPS,
        guardrails=RAILS,
        by=alice.as_actor(),
        reason="Better on incident reports: evaluation 42.",
    )
    rollout.started(by=RECONCILER)
    return rollout


def measured(rollout: Rollout, candidate: float, minutes: int = 8, count: int = 300) -> None:
    """Some minutes of both arms; the control fails in 4 of 100."""
    for minute in range(minutes):
        at = now() - timedelta(minutes=minutes - minute - 1)
        for arm, rate in (("control", 0.04), ("candidate", candidate)):
            fails = [1.0] * round(rate * count) + [0.0] * (count - round(rate * count))
            RolloutMinute.add((rollout, arm, at, "error_rate", value) for value in fails)
            times = [0.4 + 0.0007 * number for number in range(count)]
            RolloutMinute.add((rollout, arm, at, "latency", value) for value in times)


def photograph(page: Any, folder: Path, name: str) -> None:
    """Wide and on a phone; no page may be wider than a phone."""
    page.screenshot(path=folder / f"{name}.png", full_page=True)
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.screenshot(path=folder / f"{name}-phone.png", full_page=True)
    page.set_viewport_size({"width": 1440, "height": 900})


def from_the_form(page: Any, candidate: AdapterVersion, plan: str, *, draft: bool = False) -> None:
    """A rollout of the version, opened on its page."""
    page.goto(f"/adapters/{candidate.adapter.slug}/v{candidate.number}/")
    page.get_by_label("Alias").select_option(label="compliance")
    page.locator(f"input[name=plan][value={plan}]").check()
    page.locator("#id_reason").fill("Better on incident reports: evaluation 42.")
    page.get_by_label("Keep it as a draft").set_checked(draft)
    page.get_by_role("button", name="Start the rollout").click()
    page.get_by_text("What happens next").wait_for()


def loaded() -> Rollout:
    """What the control loop notes when every healthy replica holds the candidate."""
    rollout = Rollout.objects.get()
    rollout.started(by=RECONCILER)
    return rollout


@pytest.mark.slow
def test_from_a_draft_to_everybody(page: Any, alias: Alias, candidate: AdapterVersion, tmp_path: Path) -> None:
    from_the_form(page, candidate, "careful", draft=True)
    page.get_by_text("It has not been started").wait_for()
    page.locator("#state").get_by_text("Error rate: worse by more than 2 points rolls back").wait_for()
    photograph(page, tmp_path, "draft")
    page.locator("input[name=plan][value=quick]").check()
    page.locator("#plan_reason").fill("No need to be so slow.")
    page.get_by_role("button", name="Change the plan").click()
    page.locator("#state").get_by_text("· 5 min").wait_for()
    page.locator("#start-reason").fill("Everybody agreed.")
    page.get_by_role("button", name="Start the rollout").click()
    page.get_by_text("until every healthy replica has loaded the candidate").first.wait_for()
    rollout = loaded()
    page.get_by_text("10 % of the users get the candidate").wait_for()
    measured(rollout, candidate=0.04)
    page.get_by_text("Error rate: the candidate is within the margin").first.wait_for()
    page.reload()
    page.get_by_text("Promote although").click()
    page.locator("#promote-reason").focus()
    page.keyboard.press("Escape")
    assert page.locator("details.override[open]").count() == 0
    page.get_by_text("Promote although").click()
    page.locator("#promote-reason").fill("every verdict is good")
    page.get_by_role("button", name="Promote").click()
    page.get_by_text("Everybody gets dora v2").first.wait_for()


@pytest.mark.slow
def test_a_plan_is_seen_before_its_start_and_own_steps_can_be_given(
    page: Any, alias: Alias, candidate: AdapterVersion, tmp_path: Path
) -> None:
    page.goto(f"/adapters/{candidate.adapter.slug}/v{candidate.number}/")
    share = page.get_by_label("Share of the users in percent")
    assert share.is_visible()
    page.locator("input[name=plan][value=quick]").check()
    assert not share.is_visible()
    quick = page.locator(".choice", has=page.locator("input[value=quick]"))
    quick.get_by_text("Error rate: worse by more than 2 points rolls back").wait_for()
    photograph(page, tmp_path, "preview")
    page.locator("input[name=plan][value=own]").check()
    for name, value in {
        "steps-0-weight": "5",
        "steps-0-hold": "10",
        "steps-1-weight": "40",
        "rails-0-margin": "3",
    }.items():
        page.locator(f"#id_{name}").fill(value)
    page.locator("#id_rails-0-metric").select_option("error_rate")
    page.get_by_label("Alias").select_option(label="compliance")
    page.locator("#id_reason").fill("Slower than the template.")
    page.get_by_role("button", name="Preview the plan").click()
    page.get_by_role("heading", name="What this plan will do").wait_for()
    photograph(page, tmp_path, "own-plan")
    page.get_by_role("button", name="Start the rollout").click()
    page.get_by_text("What happens next").wait_for()
    rollout = Rollout.objects.get()
    assert [(step["weight"], step["hold_s"]) for step in rollout.steps] == [(5, 600), (40, 0)]
    assert rollout.guardrails == [{"metric": "error_rate", "margin": 3, "kind": "guardrail"}]


@pytest.mark.parametrize("width", [1440, 390])
@pytest.mark.slow
def test_started_and_rolled_back_by_a_person(
    page: Any, alias: Alias, candidate: AdapterVersion, tmp_path: Path, width: int
) -> None:
    page.set_viewport_size({"width": width, "height": 844})
    from_the_form(page, candidate, "quick")
    rollout = loaded()
    page.get_by_text("10 % of the users get the candidate").wait_for()
    page.get_by_text("Error rate: not enough data yet").first.wait_for()
    measured(rollout, candidate=0.08)
    page.get_by_text("Error rate: not decided yet").first.wait_for()
    page.screenshot(path=tmp_path / f"undecided-{width}.png", full_page=True)
    page.locator("#rollback-reason").fill("3 a.m.")
    page.get_by_role("button", name="Roll back").click()
    page.get_by_text("Everybody gets dora v1").first.wait_for()
    rollout.refresh_from_db()
    assert (rollout.status, Alias.objects.get().version) == ("rolled_back", rollout.stable)


@pytest.mark.slow
def test_watch_and_promote(page: Any, rollout: Rollout, tmp_path: Path) -> None:
    page.goto(f"/rollouts/{rollout.pk}/")
    page.get_by_text("10 % of the users get the candidate").wait_for()
    measured(rollout, candidate=0.04)
    page.get_by_text("Error rate: the candidate is within the margin").first.wait_for()
    page.get_by_text("What happens next: The share grows to 50 %").wait_for()
    photograph(page, tmp_path, "rollout")
    Rollout.objects.filter(pk=rollout.pk).update(step_at=now() - timedelta(minutes=11))
    rollout.refresh_from_db()
    measured(rollout, candidate=0.04)  # also in the latest minute: the loop pauses what it hears nothing of
    judge_and_act(rollout, now())
    page.get_by_text("50 % of the users get the candidate").wait_for()
    page.get_by_text("Promote although").click()
    page.locator("#promote-reason").fill("every verdict is good")
    page.get_by_role("button", name="Promote").click()
    page.get_by_text("Everybody gets dora v2").first.wait_for()


@pytest.mark.slow
def test_it_rolls_back_while_somebody_watches(page: Any, rollout: Rollout, tmp_path: Path) -> None:
    page.goto(f"/rollouts/{rollout.pk}/")
    page.get_by_text("10 % of the users get the candidate").wait_for()
    measured(rollout, candidate=0.2)
    page.get_by_text("It rolls back within seconds").wait_for()
    judge_and_act(rollout, now())
    page.get_by_text("Everybody gets dora v1").first.wait_for()
    page.get_by_text("worse than the control by more than").first.wait_for()
    photograph(page, tmp_path, "rolled-back")


@pytest.mark.slow
def test_a_person_rolls_back_on_a_phone(page: Any, rollout: Rollout) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto(f"/rollouts/{rollout.pk}/")
    button = page.get_by_role("button", name="Roll back")
    assert button.bounding_box()["y"] < 844
    page.locator("#rollback-reason").fill("3 a.m.")
    button.click()
    page.get_by_text("Everybody gets dora v1").first.wait_for()
