"""What a rollout's page says will happen is what the control loop does, and the numbers' words never gainsay it."""

from __future__ import annotations

from datetime import timedelta
from itertools import pairwise
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse

from adapterhub.accounts.models import User
from registry.models import AdapterVersion, Alias, Rollout
from registry.pages.rollout_summary import SENTENCES, UNDECIDED, summary
from registry.rollouts.controller import judge_and_act
from tests.builders.rollouts import SOON, measured, opened

LAST = [{"weight": 50, "hold_s": 60, "min_samples": 100}]
SIGNAL = [{"metric": "error_rate", "margin": 5, "kind": "signal"}]
SMALL = {"count": 100}


def summary_soon(rollout: Rollout) -> dict[str, Any]:
    return summary(rollout, rollout.step_at + SOON)


@pytest.mark.parametrize(
    ("plan", "failing", "many", "next_", "ends"),
    [
        ({}, 0.2, {}, "It rolls back within seconds", ("rolled_back", 10)),
        ({"guardrails": SIGNAL}, 0.2, {}, "It pauses within seconds", ("paused", 10)),
        ({}, 0.05, SMALL, "The share grows to 50 % within seconds." + UNDECIDED, ("running", 50)),
        ({"steps": LAST}, 0.05, SMALL, "It stays at 50 % until every verdict is good.", ("running", 50)),
        ({"steps": LAST}, 0.05, {}, "It is promoted to 100 % within seconds.", ("promoted", 50)),
    ],
)
def test_what_happens_next_happens(
    alias: Alias, candidate: AdapterVersion, alice: User, plan: Any, failing: float, many: Any, next_: str, ends: Any
) -> None:
    rollout = opened(alias, candidate, alice, **plan)
    measured(rollout, control=0.05, candidate=failing, **many)
    before = summary_soon(rollout)
    assert before["next"].startswith(next_)
    analysis = judge_and_act(rollout, rollout.step_at + SOON)
    rollout.refresh_from_db()
    assert (rollout.status, rollout.weight) == ends
    assert before["numbers"] == [SENTENCES[analysis.action], *analysis.reasons]


def test_a_protected_alias_asks_before_it_is_promoted(alias: Alias, candidate: AdapterVersion, alice: User) -> None:
    alias.set_policy({"quorum": 1}, by=alice.as_actor())
    alias.refresh_from_db()
    rollout = opened(alias, candidate, alice, steps=LAST)
    measured(rollout, control=0.05, candidate=0.05)
    assert summary_soon(rollout)["next"].startswith("It asks for an approval of the promotion within seconds.")
    judge_and_act(rollout, rollout.step_at + SOON)
    rollout.refresh_from_db()
    assert rollout.status == "awaiting_approval"


def test_the_time_that_is_left_is_told_without_a_zone(alias: Alias, candidate: AdapterVersion, alice: User) -> None:
    rollout = opened(alias, candidate, alice, steps=[{"weight": 10, "hold_s": 3600, "min_samples": 100}, *LAST])
    context = summary(rollout, rollout.step_at + timedelta(minutes=2))
    assert "to 50 % in 58 min at the earliest, after 100 more users in each arm." in context["next"]


def test_a_paused_rollout_is_not_said_to_move(
    alias: Alias, candidate: AdapterVersion, alice: User, client: Client
) -> None:
    rollout = opened(alias, candidate, alice)
    measured(rollout, control=0.05, candidate=0.2)
    rollout.pause(by=alice.as_actor(), reason="look", expected_generation=rollout.generation)
    client.force_login(alice)
    page = client.get(reverse("rollout", args=[rollout.pk])).content.decode()
    assert "Nothing, until somebody resumes it" in page
    assert "within seconds" not in page


def test_the_users_that_are_missing_are_not_said_to_come_within_seconds(
    alias: Alias, candidate: AdapterVersion, alice: User
) -> None:
    rollout = opened(alias, candidate, alice, steps=LAST)
    measured(rollout, control=0.05, candidate=0.05, count=3)
    sentence = summary_soon(rollout)["next"]
    assert "then, after 97 more users in each arm." in sentence
    assert "within seconds" not in sentence


def test_the_stepper_names_the_present_step_and_what_it_waits_for(
    alias: Alias, candidate: AdapterVersion, alice: User
) -> None:
    rollout = opened(alias, candidate, alice, steps=[{"weight": 10, "hold_s": 3600, "min_samples": 100}, *LAST])
    measured(rollout, control=0.05, candidate=0.05, count=30)
    first, second, promotion = summary_soon(rollout)["plan"]
    assert (first["state"], second["state"], promotion["state"]) == ("now", "later", "later")
    assert [(each["text"], each["met"]) for each in first["waits"]] == [
        ("60 min of measuring, 58 min left", False),
        ("users: control 30 of 100, candidate 30 of 100", False),
    ]
    rollout.rollback(reason="next", by=alice.as_actor())
    assert [step["state"] for step in summary_soon(rollout)["plan"]] == ["ended", "never", "never"]


def test_figures_stand_beside_each_verdict(alias: Alias, candidate: AdapterVersion, alice: User) -> None:
    rails = [{"metric": "error_rate", "margin": 5}, {"metric": "latency", "margin": 1, "level": 0.95}]
    rollout = opened(alias, candidate, alice, guardrails=rails)
    measured(rollout, control=0.04, candidate=0.05)
    measured(rollout, control=0.5, candidate=0.5, count=20, metric="latency")
    errors, latency = summary_soon(rollout)["verdicts"]["rows"]
    assert (errors["control"]["figure"], errors["candidate"]["figure"], errors["verdict"]) == ("4 %", "5 %", "good")
    assert errors["difference"].startswith("+1 (")
    assert errors["margin"] == "5 points"
    assert (latency["verdict"], latency["difference"]) == ("not enough data", "not enough data")
    assert (latency["control"]["users"], latency["needed"]) == (20, 185)
    assert "not enough data yet, users: 20 in the control and 20 in the candidate" in latency["reason"]


def test_a_chart_has_axes_and_holds_nothing_from_before_the_rollout(
    alias: Alias, candidate: AdapterVersion, alice: User
) -> None:
    rollout = opened(alias, candidate, alice)
    start = rollout.opened_at.replace(second=0, microsecond=0)
    measured(rollout, control=0.05, candidate=0.9, at=start - timedelta(minutes=30))
    for minute in (0, 1, 2, 20):
        measured(rollout, control=0.05, candidate=0.06, count=200, at=start + timedelta(minutes=minute))
    context = summary(rollout, start + timedelta(minutes=30))
    chart = context["charts"][0]["chart"]
    assert [row["candidate"] for row in chart["rows"]] == ["6 %"] * 4
    assert [row["control_users"] for row in chart["rows"]] == [200, 400, 600, 800]
    gaps = [right["x"] - left["x"] for left, right in pairwise(chart["dots"])]
    assert gaps[2] > 10 * gaps[0]
    assert len(chart["axes"]["values"]) >= 3
    assert len(chart["axes"]["times"]) >= 3
    assert context["ramp"]["axes"]["unit"] == "%"


def test_no_band_is_drawn_without_an_interval(alias: Alias, candidate: AdapterVersion, alice: User) -> None:
    rollout = opened(alias, candidate, alice, guardrails=[{"metric": "latency", "margin": 1, "level": 0.95}])
    measured(rollout, control=0.5, candidate=0.5, count=20, metric="latency")
    [drawn] = summary_soon(rollout)["charts"]
    assert (drawn["chart"]["band"], drawn["chart"]["line"]) == ("", "")
    assert drawn["chart"]["rows"][0]["difference"] == "not enough data"
