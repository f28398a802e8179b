"""What a rollout's page says will happen is what the control loop does, and the numbers' words never gainsay it."""

from __future__ import annotations

from datetime import timedelta
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
