"""The rollouts' control loop on minutes as the routers report them: what it does, and what it writes down."""

from __future__ import annotations

import json
from datetime import timedelta
from hashlib import sha256
from typing import Any

import pytest
from django.test import Client
from django.utils.timezone import now

from adapterhub.accounts.models import User
from adapterhub.audit.models import AuditEvent
from adapterhub.core.errors import Invalid
from registry.models import AdapterVersion, Alias, Response, Rollout, RolloutMinute, RolloutUnit
from registry.rollouts.controller import judge, judge_all, judge_and_act, progress
from registry.rollouts.outcome_ingest import keep
from registry.serving.routing_table import routing_table
from serving_client.reports import MeasuredAnswer, Outcome
from tests.builders.rollouts import LATER, RAILS, SOON, measured, opened


@pytest.fixture
def rollout(alias: Alias, candidate: AdapterVersion, alice: User) -> Rollout:
    return opened(alias, candidate, alice)


def last_event(rollout: Rollout) -> AuditEvent:
    return AuditEvent.objects.about(rollout).order_by("-id").first()


def test_a_worse_candidate_is_rolled_back_without_a_person(rollout: Rollout) -> None:
    measured(rollout, control=0.05, candidate=0.2)
    judge_all()
    rollout.refresh_from_db()
    event = last_event(rollout)
    assert rollout.status == "rolled_back"
    assert (event.tag, event.actor_name) == ("rollout:rolled_back", "system:rollout")
    [finding] = event.after["evidence"]["findings"]
    assert finding["verdict"] == "bad"
    assert finding["difference"]["lower"] > 0.05
    assert "worse than the control by more than the margin of 5 points" in event.reason


def test_a_good_candidate_takes_every_step_and_is_promoted(rollout: Rollout) -> None:
    weights = []
    for _ in range(3):
        measured(rollout, control=0.05, candidate=0.05)
        judge_and_act(rollout, rollout.step_at + SOON)
        weights.append((rollout.status, rollout.weight))
    assert weights[0] == ("running", 50)
    assert weights[-1][0] == "promoted"
    assert Alias.objects.get(pk=rollout.alias_id).version_id == rollout.candidate_id
    assert last_event(rollout).after["evidence"]["findings"][0]["verdict"] == "good"


def test_a_step_needs_its_time_and_its_samples(rollout: Rollout) -> None:
    measured(rollout, control=0, candidate=0, count=99)
    judge_and_act(rollout, rollout.step_at + SOON)
    assert progress(rollout, rollout.step_at).hold_left_s == 60
    measured(rollout, control=0, candidate=0, count=1)
    judge_and_act(rollout, rollout.step_at)
    assert (rollout.step, rollout.weight) == (0, 10)
    judge_and_act(rollout, rollout.step_at + SOON)
    assert (rollout.step, rollout.weight) == (1, 50)


def test_an_undecided_comparison_never_promotes(alias: Alias, candidate: AdapterVersion, alice: User) -> None:
    rollout = opened(alias, candidate, alice, steps=[{"weight": 50}])
    measured(rollout, control=0.05, candidate=0.1, count=60)
    judge_and_act(rollout, rollout.step_at + LATER)
    assert rollout.status == "running"


def test_a_signal_pauses_and_so_do_missing_metrics(alias: Alias, candidate: AdapterVersion, alice: User) -> None:
    rollout = opened(alias, candidate, alice, guardrails=[{**RAILS[0], "kind": "signal"}])
    measured(rollout, control=0.05, candidate=0.2)
    judge_and_act(rollout, now())
    assert rollout.status == "paused"
    rollout.rollback(reason="next", by=alice.as_actor())
    silent = opened(alias, candidate, alice)
    judge_and_act(silent, silent.step_at + timedelta(minutes=6))
    assert silent.status == "paused"
    assert "nothing from the control and the candidate" in last_event(silent).reason


def test_a_protected_alias_waits_for_its_approval(alias: Alias, candidate: AdapterVersion, alice: User) -> None:
    alias.set_policy({"quorum": 1}, by=alice.as_actor())
    alias.refresh_from_db()
    rollout = opened(alias, candidate, alice, steps=[{"weight": 50}])
    measured(rollout, control=0.05, candidate=0.05)
    judge_and_act(rollout, rollout.step_at + SOON)
    assert rollout.status == "awaiting_approval"
    measured(rollout, control=0.05, candidate=0.5)
    judge_and_act(rollout, rollout.step_at + SOON)
    assert rollout.status == "rolled_back"


def test_a_wrong_split_pauses(rollout: Rollout) -> None:
    units = [RolloutUnit(rollout=rollout, unit=f"u{number}", arm="candidate", weight=10) for number in range(200)]
    RolloutUnit.objects.bulk_create(units)
    judge_and_act(rollout, now())
    assert rollout.status == "paused"
    assert "users that their weights say" in last_event(rollout).reason


@pytest.mark.parametrize(
    ("plan", "field"),
    [
        ({"steps": [{"weight": 50}, {"weight": 10}]}, "steps"),
        ({"steps": [{"weight": 100}]}, "steps"),
        ({"guardrails": [{"metric": "speed", "margin": 1}]}, "guardrails"),
        ({"guardrails": [{"metric": "error_rate"}]}, "guardrails"),
        ({"guardrails": [{"metric": "error_rate", "margin": 1, "level": 0.9}]}, "guardrails"),
        ({"steps": [{"weight": 10, "shadow": 10}]}, "steps"),
        ({"guardrails": [{"metric": "difference_rate", "margin": 1}]}, "guardrails"),
        ({"checks": {"refusal": "("}}, "checks.refusal"),
        ({"checks": {"format": "a" * 501}}, "checks.format"),
        ({"checks": {"schema": {"type": "table"}}}, "checks.schema"),
        ({"checks": {"schema": {"properties": {"a": {"pattern": "(a+)+$"}}}}}, "checks.schema"),
        ({"targeting": {"allow": ["me"], "deny": ["me"]}}, "targeting"),
        ({"targeting": {"allow": [str(number) for number in range(1001)]}}, "targeting"),
    ],
)
def test_a_plan_that_cannot_be_carried_out_is_refused(
    alias: Alias, candidate: AdapterVersion, alice: User, plan: dict[str, Any], field: str
) -> None:
    with pytest.raises(Invalid) as refusal:
        opened(alias, candidate, alice, **plan)
    assert refusal.value.field == field
    assert not Rollout.objects.exists()


def report(rollout: Rollout, number: object, arm: str, **changes: Any) -> Outcome:
    fields = {
        "response_id": f"r{number}",
        "at": now().timestamp(),
        "project": "eu",
        "alias": rollout.alias.name,
        "version": rollout.candidate.served_name,
        "arm": arm,
        "sticky": True,
        "unit": f"u{number}",
        "status": 200,
        "ttft_ms": 50.0,
        "total_ms": 1050.0,
        "prompt_tokens": 5,
        "completion_tokens": 20,
        **changes,
    }
    return Outcome(**fields)


def test_reports_become_minutes_once_and_feedback_joins_them(rollout: Rollout, ci: str) -> None:
    reports = [
        report(rollout, 1, "candidate"),
        report(rollout, 2, "candidate", status=502),
        report(rollout, 3, "stable"),
        report(rollout, 4, "control", sticky=False),
        report(rollout, 5, "control", status=422),
        report(rollout, 6, "control", refusal=True),
    ]
    keep(reports)
    keep(reports)
    rows = {(row.arm, row.metric): (row.count, row.total) for row in rollout.minutes.all()}
    assert rows["candidate", "error_rate"] == (2, 1)
    assert rows["candidate", "tokens_per_second"] == (1, 20)
    assert rows["control", "error_rate"] == (1, 0)
    assert rows["control", "refusal_rate"] == (1, 1)
    assert Response.objects.get(pk="r3").rollout == rollout
    assert set(rollout.units.values_list("unit", flat=True)) == {"u1", "u2", "u5", "u6"}
    assert send_feedback(ci, response_id="r1", outcome="bad") == 201
    assert send_feedback(ci, response_id="r1", outcome="good") == 409
    assert send_feedback(ci, response_id="r2") == 422
    assert send_feedback(ci, response_id="none", score=1) == 422
    assert rollout.minutes.get(metric="bad_feedback_rate").total == 1


@pytest.mark.slow
def test_a_user_counts_once_however_often_they_ask(rollout: Rollout) -> None:
    """Of 20 users in each arm some fail every time: as 1,200 answers that would be a clear regression, as 20 users it
    is none yet."""
    at = now().timestamp()  # one minute for all, as its rows are read by arm alone
    for arm, failing in (("control", 1), ("candidate", 6)):
        for user in range(20):
            fields = {"unit": f"{arm}-{user}", "status": 500 if user < failing else 200, "at": at}
            keep([report(rollout, f"{arm}-{user}-{time}", arm, **fields) for time in range(60)])
    rows = {row.arm: (row.count, row.total) for row in rollout.minutes.filter(metric="error_rate", count__gt=0)}
    assert rows == {"control": (20, 1), "candidate": (20, 6)}
    assert judge(rollout, now()).findings[0].verdict == "inconclusive"
    measured(rollout, control=1 / 20, candidate=6 / 20, count=1200)
    assert judge(rollout, now()).findings[0].verdict == "bad"


def test_users_who_only_come_again_are_no_silence(rollout: Rollout) -> None:
    """The arms are heard of by every answer, also by those that do not count."""
    began = now() - timedelta(minutes=9)
    Rollout.objects.filter(pk=rollout.pk).update(opened_at=began, step_at=began)
    rollout.refresh_from_db()
    for minute in range(8):
        at = now() - timedelta(minutes=8 - minute)
        keep([report(rollout, f"{arm}{minute}", arm, unit=arm, at=at.timestamp()) for arm in ("control", "candidate")])
    assert rollout.minutes.filter(metric="latency", arm="candidate").count() == 8
    assert judge(rollout, now()).action == "wait"


def test_the_first_feedback_of_a_user_counts(rollout: Rollout, ci: str) -> None:
    keep([report(rollout, number, "candidate", unit="same") for number in (1, 2)])
    assert [send_feedback(ci, response_id=f"r{number}", outcome="bad") for number in (1, 2)] == [201, 201]
    assert rollout.minutes.get(metric="bad_feedback_rate").count == 1


def test_users_in_both_arms_pause(rollout: Rollout) -> None:
    keep([report(rollout, number, "candidate", unit=f"u{number % 50}") for number in range(100)])
    keep([report(rollout, 100 + number, "control", unit=f"u{number}") for number in range(10)])
    judge_and_act(rollout, now())
    assert rollout.status == "paused"
    assert "answers of both arms" in last_event(rollout).reason


def send_feedback(token: str, **body: Any) -> int:
    return (
        Client()
        .post(
            "/api/v1/feedback/",
            json.dumps(body),
            content_type="application/json",
            headers={"Authorization": f"Bearer {token}"},
        )
        .status_code
    )


def test_the_analysis_over_rest_has_numbers_and_sentences(rollout: Rollout, ci: str) -> None:
    measured(rollout, control=0.05, candidate=0.05)
    answer = Client().get(f"/api/v1/rollouts/{rollout.pk}/analysis/", headers={"Authorization": f"Bearer {ci}"})
    [finding_row] = answer.json()["findings"]
    assert answer.json()["action"] == "promote"
    assert (finding_row["metric"], finding_row["verdict"], finding_row["unit"]) == ("error_rate", "good", "points")


SHADOW = [{"weight": 0, "shadow": 50, "min_samples": 100}, {"weight": 10, "hold_s": 60, "min_samples": 100}]


def shadowed(rollout: Rollout, count: int, differing: int) -> None:
    """So many pairs that nobody saw, as the routers report them."""
    mirrored = MeasuredAnswer(status=200, ttft_ms=None, total_ms=900.0, prompt_tokens=5, completion_tokens=20)
    keep(
        [
            report(rollout, number, "shadow", ttft_ms=None, mirrored=mirrored, differs=number < differing)
            for number in range(count)
        ]
    )


def test_a_shadow_that_differs_too_much_never_reaches_a_user(
    alias: Alias, candidate: AdapterVersion, alice: User
) -> None:
    rails = [{"metric": "difference_rate", "margin": 20}]
    rollout = opened(alias, candidate, alice, steps=SHADOW, guardrails=rails)
    shadowed(rollout, 400, differing=320)
    judge_and_act(rollout, now())
    assert (rollout.status, rollout.weight) == ("rolled_back", 0)


def test_a_shadow_that_agrees_goes_on_to_users_whose_numbers_begin_anew(
    alias: Alias, candidate: AdapterVersion, alice: User
) -> None:
    rollout = opened(alias, candidate, alice, steps=SHADOW)
    shadowed(rollout, 400, differing=0)
    assert judge(rollout, now()).findings[0].verdict == "good"
    judge_and_act(rollout, now())
    assert (rollout.status, rollout.step, rollout.weight, rollout.shadow) == ("running", 1, 10, 0)
    assert judge(rollout, now()).findings[0].verdict == "inconclusive"
    assert progress(rollout, now()).samples == 0


def test_a_step_is_judged_by_what_it_measures(alias: Alias, candidate: AdapterVersion, alice: User) -> None:
    """Silence of a metric that no answer of the step can tell pauses nothing."""
    rails = [{"metric": "difference_rate", "margin": 20}, {"metric": "ttft", "margin": 1}]
    rollout = opened(alias, candidate, alice, steps=SHADOW, guardrails=rails)
    shadowed(rollout, 400, differing=0)
    later = now() + timedelta(minutes=4)
    assert [finding_row.guardrail.metric for finding_row in judge(rollout, later).findings] == [
        "answers that differ from the stable version's"
    ]
    judge_and_act(rollout, now())
    assert rollout.step == 1
    assert [finding_row.guardrail.metric for finding_row in judge(rollout, later).findings] == ["time to first token"]
    only_seen = opened_anew(rollout, alice, candidate, rails[1:])
    assert judge(only_seen, later).action == "wait"


def opened_anew(rollout: Rollout, user: User, candidate: AdapterVersion, rails: list[dict[str, Any]]) -> Rollout:
    rollout.rollback(reason="again", by=user.as_actor())
    return opened(rollout.alias, candidate, user, steps=SHADOW, guardrails=rails)


def test_units_on_a_list_are_not_measured(rollout: Rollout) -> None:
    keep([report(rollout, 1, "candidate", counted=False), report(rollout, 2, "candidate")])
    assert rollout.minutes.get(arm="candidate", metric="error_rate").count == 1
    assert rollout.minutes.get(arm="candidate", metric="cost").total == 25


def test_lists_and_checks_reach_the_routers_as_hashes(alias: Alias, candidate: AdapterVersion, alice: User) -> None:
    wanted = {"allow": ["tester"], "deny": ["bank"], "holdout": 5}
    opened(alias, candidate, alice, targeting=wanted, checks={"refusal": "cannot"})
    route = routing_table().aliases[f"eu/{alias.name}"].rollout
    assert route
    assert (route.holdout, route.checks.refusal) == (5, "cannot")
    assert route.pinned == {sha256(b"tester").hexdigest(): "candidate", sha256(b"bank").hexdigest(): "stable"}
    assert "tester" not in str(Rollout.objects.values().get())


@pytest.mark.slow
def test_an_outage_that_moves_the_control_too_only_pauses(rollout: Rollout) -> None:
    """The hour before the rollout is remembered, once."""
    earlier = rollout.opened_at - timedelta(minutes=10)
    keep(
        [
            report(rollout, number, "none", at=earlier.timestamp(), version=rollout.stable.served_name)
            for number in range(400)
        ]
    )
    measured(rollout, control=0.5, candidate=0.7)
    judge_all()
    rollout.refresh_from_db()
    assert rollout.status == "paused"
    assert "outage" in last_event(rollout).reason
    RolloutMinute.remember_baseline(rollout)
    assert rollout.minutes.get(arm="baseline", metric="error_rate").count == 400


def test_a_weight_that_leaves_no_control_is_refused(rollout: Rollout, alice: User) -> None:
    with pytest.raises(Invalid, match="no control group of equal size"):
        rollout.set_weight(60, reason="faster", by=alice.as_actor())


def test_an_approved_step_is_not_asked_for_again(alias: Alias, candidate: AdapterVersion, alice: User) -> None:
    rollout = opened(alias, candidate, alice, steps=[{"weight": 10, "approval": True}, {"weight": 50, "hold_s": 600}])
    measured(rollout, control=0.05, candidate=0.05)
    judge_and_act(rollout, now())
    assert rollout.status == "awaiting_approval"
    rollout.advance(reason="seen", by=alice.as_actor())
    judge_and_act(rollout, now())
    assert (rollout.status, rollout.step, rollout.weight) == ("running", 1, 50)
