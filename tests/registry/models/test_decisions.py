"""Verdicts are frozen with the decision that was made on them: for pages, REST, dossier and the audit trail."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.db import DatabaseError, transaction
from django.test import Client
from django.urls import reverse
from django.utils.timezone import now

from adapterhub.accounts.models import User
from adapterhub.audit.models import AuditEvent
from registry.evidence.dossier import dossier
from registry.models import AdapterVersion, Alias, Rollout, RolloutDecision
from registry.pages.rollout_summary import summary
from registry.rollouts.controller import judge_and_act
from tests.builders.rollouts import SOON, measured, opened, signed

LAST = [{"weight": 50, "hold_s": 60, "min_samples": 100}]


@pytest.fixture
def rollout(alias: Alias, candidate: AdapterVersion, alice: User) -> Rollout:
    return opened(alias, candidate, alice, steps=LAST)


def rest(path: str, token: str) -> Any:
    return Client().get(f"/api/v1/{path}", headers={"Authorization": f"Bearer {token}"}).json()


def promoted(rollout: Rollout) -> Rollout:
    measured(rollout, control=0.05, candidate=0.05)
    judge_and_act(rollout, rollout.step_at + SOON)
    rollout.refresh_from_db()
    assert rollout.status == "promoted"
    return rollout


def test_the_past_is_not_judged_by_the_present(rollout: Rollout) -> None:
    """Hours after its end nothing comes from the control any more, and late reports arrive: the verdicts stay."""
    frozen = summary(promoted(rollout), now())
    measured(rollout, control=0.0, candidate=0.9)
    later = summary(rollout, now() + timedelta(hours=3))
    assert later["numbers"] == frozen["numbers"]
    assert later["numbers"][0] == "Every verdict was good."
    assert later["verdicts"] == frozen["verdicts"]
    assert not any("nothing from" in sentence or "Somebody has to" in sentence for sentence in later["numbers"])


@pytest.mark.parametrize("verb", ["pause", "rollback", "promote"])
def test_a_decision_by_a_person_freezes_what_the_numbers_said(rollout: Rollout, alice: User, verb: str) -> None:
    measured(rollout, control=0.05, candidate=0.05, count=20)
    getattr(rollout, verb)(reason="by hand", by=alice.as_actor())
    decision = rollout.decisions.get()
    [finding] = decision.verdicts["findings"]
    assert (finding["verdict"], finding["control"]["users"], finding["candidate"]["value"]) == (
        "inconclusive",
        20,
        0.05,
    )
    assert any("needs 80 more users" in condition for condition in decision.verdicts["unmet"])
    assert AuditEvent.objects.about(rollout).first().after["evidence"] == decision.verdicts
    assert summary(rollout, now() + timedelta(hours=1))["verdicts"]["rows"][0]["control"]["users"] == 20


def test_a_rollback_after_the_promotion_keeps_the_verdicts_of_the_promotion(rollout: Rollout, alice: User) -> None:
    promoted(rollout)
    measured(rollout, control=0.0, candidate=0.9)
    rollout.rollback(reason="a customer complains", by=alice.as_actor())
    first, second = rollout.decisions.all()
    assert (first.outcome, second.outcome) == ("promoted", "rolled_back")
    assert second.verdicts == first.verdicts


def test_a_step_by_hand_keeps_the_numbers_of_the_step_that_it_ends(
    alias: Alias, candidate: AdapterVersion, alice: User
) -> None:
    steps = [{"weight": 0, "shadow": 50, "min_samples": 100}, *LAST]
    rollout = opened(alias, candidate, alice, steps=steps)
    rollout.advance(reason="the shadow is enough", by=alice.as_actor())
    verdicts = rollout.decisions.get().verdicts
    assert (verdicts["step"], verdicts["weight"]) == (0, 0)
    assert "Step 1 needs 100 more users in each arm." in verdicts["unmet"]


def test_no_statement_changes_a_decision(rollout: Rollout, alice: User) -> None:
    rollout.rollback(reason="by hand", by=alice.as_actor())
    for change in (lambda rows: rows.update(reason="x"), lambda rows: rows.delete()):
        with pytest.raises(DatabaseError), transaction.atomic():
            change(RolloutDecision.objects.all())


def test_rest_and_the_dossier_carry_the_frozen_verdicts(rollout: Rollout, ci: str) -> None:
    path = f"rollouts/{rollout.pk}/"
    assert rest(path, ci)["verdicts"] is None
    promoted(rollout)
    measured(rollout, control=0.0, candidate=0.9)
    frozen = rollout.decisions.get().verdicts
    assert rest(path, ci)["verdicts"] == rest(f"{path}analysis/", ci) == frozen
    [decision] = rest(f"{path}decisions/", ci)
    assert (decision["outcome"], decision["by"], decision["verdicts"]) == ("promoted", "system:rollout", frozen)
    [past] = dossier(rollout.candidate)["3 Monitoring and control"]["rollouts"]
    assert past["decisions"][0]["verdicts"] == frozen


def test_an_approver_sees_the_verdicts(alias: Alias, candidate: AdapterVersion, alice: User, client: Client) -> None:
    alias.set_policy({"quorum": 1}, by=alice.as_actor())
    alias.refresh_from_db()
    rollout = opened(alias, candidate, alice, steps=LAST)
    measured(rollout, control=0.04, candidate=0.05, count=500)
    client.force_login(alice)
    page = client.get(reverse("approval", args=[rollout.approvals.get().pk])).content.decode()
    assert "control 500 of 100, candidate 500 of 100" in page
    assert "4 %" in page


def test_promote_is_inactive_while_the_approval_is_missing(
    alias: Alias, candidate: AdapterVersion, alice: User, client: Client
) -> None:
    rollout = Rollout.create(alias=alias, candidate=candidate, steps=LAST, reason="try", by=alice.as_actor())
    rollout.started(by=alice.as_actor())
    alias.set_policy({"quorum": 1}, by=alice.as_actor())
    rollout.refresh_from_db()
    rollout.request_approval(reason="protected meanwhile", by=alice.as_actor())
    client.force_login(alice)
    address = reverse("rollout", args=[rollout.pk])
    assert 'disabled aria-describedby="promote-obstacle"' in client.get(address).content.decode()
    signed(rollout)
    assert "promote-obstacle" not in client.get(address).content.decode()


def test_a_promotion_names_what_it_overrides_and_needs_that_page(rollout: Rollout, alice: User, client: Client) -> None:
    client.force_login(alice)
    address = reverse("rollout", args=[rollout.pk])
    page = client.get(address).content.decode()
    assert "It would override:" in page
    assert "Step 1 needs 100 more users in each arm." in page
    move = reverse("move-rollout", args=[rollout.pk, "promote"])
    refused = client.post(
        move, {"reason": "I like it"}, follow=True, headers={"referer": f"http://testserver{address}"}
    )
    assert "A promotion now would override" in refused.content.decode()
    rollout.refresh_from_db()
    assert rollout.status == "running"
    client.post(move, {"reason": "an emergency", "overrides": "1"})
    rollout.refresh_from_db()
    assert rollout.status == "promoted"
    page = client.get(address).content.decode()
    assert "It overrode:" in page
    assert "an emergency" in page
