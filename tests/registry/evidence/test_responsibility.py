"""The people who answer for what an alias served at a time: the page, its link, and REST."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse
from django.utils.timezone import now

from adapterhub.accounts.models import Membership, User
from registry.evidence.responsibility import responsibility
from registry.models import AdapterVersion, Alias, Rollout
from registry.rollouts.controller import judge_and_act
from tests.builders.people import member
from tests.builders.rest import client as api
from tests.builders.rollouts import SOON, measured, opened, signed

LAST = [{"weight": 50, "hold_s": 60, "min_samples": 100}]


@pytest.fixture
def promoted(alias: Alias, candidate: AdapterVersion, alice: User) -> Rollout:
    """Promoted by olga, asked for by alice, signed by nora."""
    alias.set_policy({"quorum": 1}, by=alice.as_actor())
    alias.refresh_from_db()
    rollout = Rollout.create(alias=alias, candidate=candidate, steps=LAST, reason="lower loss", by=alice.as_actor())
    signed(rollout, "nora")
    rollout.started(by=alice.as_actor())
    olga = member("olga", alias.project, Membership.Role.OPERATOR)
    rollout.promote(reason="all agreed", by=olga.as_actor())
    return rollout


def page_of(client: Client, alias: Alias, at: Any) -> Any:
    return client.get(reverse("responsibility", args=[alias.ref]), {"at": at.isoformat()})


def test_requester_approver_decider_reason_and_rollout_answer_for_a_promotion(
    alias: Alias, promoted: Rollout, alice: User, client: Client
) -> None:
    client.force_login(alice)
    answer = page_of(client, alias, now())
    page = " ".join(answer.content.decode().split())
    for text in ("alice: lower loss", "olga: all agreed", "nora: approve", "Promoted by a rollout"):
        assert text in page
    for target in ("rollout", "approval"):
        key = promoted.pk if target == "rollout" else promoted.approvals.get().pk
        assert reverse(target, args=[key]) in page
    assert answer.context["answer"].version == promoted.candidate
    assert answer.context["answer"].decision == promoted.decisions.get()
    assert answer.context["permalink"].endswith("Z")
    assert len(answer.context["bar"]["pieces"]) == 2


def test_each_time_has_its_own_answer(alias: Alias, promoted: Rollout, alice: User) -> None:
    created, moved = alias.moves.order_by("at")
    assert responsibility(alias, created.at - timedelta(seconds=1)) is None
    first = responsibility(alias, created.at)
    assert first
    assert (first.version, first.until, first.rollout) == (promoted.stable, moved.at, None)
    promoted.rollback(reason="3 a.m.", by=alice.as_actor())
    last = responsibility(alias, now())
    assert last
    assert (last.version, last.rollout, last.reason) == (promoted.stable, promoted, "3 a.m.")
    between = responsibility(alias, moved.at)
    assert between
    assert (between.version, between.decided_by) == (promoted.candidate, "olga")


def test_a_rollout_in_progress_is_named_with_its_share(alias: Alias, candidate: AdapterVersion, alice: User) -> None:
    rollout = opened(alias, candidate, alice, steps=LAST)
    meanwhile = now()
    measured(rollout, control=0.05, candidate=0.05)
    judge_and_act(rollout, rollout.step_at + SOON)
    during, after = responsibility(alias, meanwhile), responsibility(alias, now())
    assert during
    assert during.trial
    assert (during.version, during.trial.rollout, during.trial.percent) == (rollout.stable, rollout, 50)
    assert after
    assert (after.version, after.trial) == (candidate, None)
    assert after.decision
    assert after.decision.verdicts["findings"][0]["verdict"] == "good"


def test_field_answer_and_link_are_in_the_same_zone(alias: Alias, alice: User, client: Client) -> None:
    client.force_login(alice)
    address = reverse("responsibility", args=[alias.ref])
    page = client.get(address, {"at": "2126-11-30T12:30:05+01:00"}).content.decode()
    assert "Time, in UTC" in page
    assert 'value="2126-11-30T11:30:05"' in page
    assert "At 30 Nov 2126, 11:30:05 UTC" in page
    assert "?at=2126-11-30T11%3A30%3A05Z" in page
    assert client.get(address, {"at": "noon"}).status_code == 422
    old = client.get(reverse("alias", args=[alias.ref]), {"at": "2126-11-30T12:30:05Z"})
    assert old.headers["Location"] == f"{address}?at=2126-11-30T12%3A30%3A05Z"


def test_rest_says_the_same(alias: Alias, promoted: Rollout, ci: str) -> None:
    answer = api(ci).get(f"/api/v1/aliases/{alias.name}/responsibility/").json()
    assert (answer["asked_by"], answer["decided_by"], answer["reason"]) == ("alice", "olga", "all agreed")
    assert answer["rollout"] == str(promoted.pk)
    assert answer["approvals"][0]["signatures"][0]["name"] == "nora"
    assert answer["decision"]["outcome"] == "promoted"
    before = api(ci).get(f"/api/v1/aliases/{alias.name}/responsibility/?at=2000-01-01T00:00:00Z")
    assert before.status_code == 404
