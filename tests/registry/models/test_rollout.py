from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from django.db import connection
from django.utils.timezone import now
from rest_framework.test import APIClient

from adapterhub.accounts.models import User
from adapterhub.audit.models import AuditEvent, verify
from adapterhub.core.errors import Conflict, Invalid, InvalidTransition, NotAllowed
from registry.models import AdapterVersion, Alias, Rollout, RolloutStatus
from registry.rollouts.outcome_ingest import at_that_time
from registry.serving.reconciler import RECONCILER
from registry.serving.routing_table import routing_table

STEPS = [{"weight": 50}]


@pytest.fixture
def rollout(alias: Alias, candidate: AdapterVersion, alice: User) -> Rollout:
    rollout = Rollout.create(alias=alias, candidate=candidate, steps=STEPS, reason="try it", by=alice.as_actor())
    rollout.started(by=RECONCILER)
    return rollout


def tags() -> list[str]:
    return list(AuditEvent.objects.order_by("id").values_list("tag", flat=True))


def test_promotion_points_the_alias_at_the_candidate(rollout: Rollout, alice: User) -> None:
    rollout.promote(reason="better", by=alice.as_actor())
    rollout.alias.refresh_from_db()
    assert rollout.status == RolloutStatus.PROMOTED
    assert rollout.alias.version == rollout.candidate
    assert tags()[-1] == "rollout:promoted"
    assert AuditEvent.objects.first().before["version"] == rollout.stable.served_name


def test_rollback_while_running_leaves_the_alias(rollout: Rollout, alice: User) -> None:
    rollout.rollback(reason="worse", by=alice.as_actor())
    rollout.alias.refresh_from_db()
    assert rollout.status == RolloutStatus.ROLLED_BACK
    assert rollout.alias.version == rollout.stable


def test_rollback_after_promotion_restores_the_stable_version(rollout: Rollout, alice: User) -> None:
    rollout.promote(reason="better", by=alice.as_actor())
    rollout.rollback(reason="worse after all", by=alice.as_actor())
    rollout.alias.refresh_from_db()
    assert rollout.alias.version == rollout.stable
    assert [move.version for move in rollout.alias.moves.all()] == [rollout.stable, rollout.candidate, rollout.stable]


def test_a_second_rollback_changes_nothing(rollout: Rollout, alice: User) -> None:
    rollout.rollback(reason="worse", by=alice.as_actor())
    before = tags()
    rollout.rollback(reason="again", by=alice.as_actor())
    assert tags() == before


def test_a_rolled_back_rollout_cannot_be_promoted(rollout: Rollout, alice: User) -> None:
    rollout.rollback(reason="worse", by=alice.as_actor())
    with pytest.raises(InvalidTransition):
        rollout.promote(reason="but", by=alice.as_actor())


def test_pause_keeps_weight_and_salt(rollout: Rollout, alice: User) -> None:
    salt = rollout.salt
    rollout.pause(reason="look", by=alice.as_actor())
    rollout.resume(reason="fine", by=alice.as_actor())
    assert (rollout.status, rollout.weight, rollout.salt) == (RolloutStatus.RUNNING, 50, salt)


def test_a_stale_generation_is_refused(rollout: Rollout, alice: User) -> None:
    with pytest.raises(Conflict, match="generation"):
        rollout.set_weight(60, reason="more", by=alice.as_actor(), expected_generation=rollout.generation - 1)


def test_one_active_rollout_an_alias(rollout: Rollout, alice: User) -> None:
    with pytest.raises(Conflict, match="has not ended"):
        Rollout.create(alias=rollout.alias, candidate=rollout.candidate, steps=STEPS, reason="two", by=alice.as_actor())


def test_the_served_version_is_no_candidate(alias: Alias, alice: User) -> None:
    with pytest.raises(Invalid, match="already"):
        Rollout.create(alias=alias, candidate=alias.version, steps=STEPS, reason="same", by=alice.as_actor())


def test_a_protected_alias_is_not_promoted_alone(rollout: Rollout, alice: User) -> None:
    rollout.alias.set_policy({"quorum": 1}, by=alice.as_actor())
    with pytest.raises(NotAllowed):
        rollout.promote(reason="alone", by=alice.as_actor())


def drafted(alias: Alias, candidate: AdapterVersion, user: User) -> Rollout:
    return Rollout.create(alias=alias, candidate=candidate, steps=STEPS, reason="later", by=user.as_actor(), draft=True)


def test_a_draft_moves_nothing_until_it_is_started(alias: Alias, candidate: AdapterVersion, alice: User) -> None:
    """It stands in nobody's way, and starts from what the alias serves then."""
    draft, other = (drafted(alias, candidate, alice) for _ in range(2))
    assert routing_table().aliases[f"eu/{alias.name}"].rollout is None
    assert at_that_time([draft], now()) is None
    alias.refresh_from_db()
    newer = Rollout.create(alias=alias, candidate=candidate, steps=STEPS, reason="now", by=alice.as_actor())
    with pytest.raises(Conflict, match="has not ended"):
        draft.start(reason="go", by=alice.as_actor())
    newer.rollback(reason="away", by=alice.as_actor())
    draft.start(reason="go", by=alice.as_actor(), expected_generation=1)
    draft.started(by=RECONCILER)
    assert (draft.status, draft.stable, draft.generation) == ("running", alias.version, 3)
    assert at_that_time([draft], now()) == draft
    draft.promote(reason="good", by=alice.as_actor())
    with pytest.raises(Invalid, match="already"):
        other.start(reason="go", by=alice.as_actor())


def test_a_draft_is_edited_and_discarded(alias: Alias, candidate: AdapterVersion, alice: User) -> None:
    draft = drafted(alias, candidate, alice)
    plan = {"steps": [{"weight": 5}], "guardrails": [{"metric": "error_rate", "margin": 2}]}
    with pytest.raises(Invalid):
        draft.edit(reason="bad", by=alice.as_actor(), steps=[])
    draft.edit(reason="slower", by=alice.as_actor(), **plan)
    assert (draft.weight, draft.guardrails) == (5, plan["guardrails"])
    assert AuditEvent.objects.get(tag="rollout:edited").before["steps"] == STEPS
    with pytest.raises(InvalidTransition):
        draft.rollback(reason="too early", by=alice.as_actor())
    draft.discard(reason="no", by=alice.as_actor())
    for refused in (draft.start, draft.edit, draft.discard):
        with pytest.raises(InvalidTransition):
            refused(reason="late", by=alice.as_actor())
    assert tags()[-3:] == ["rollout:drafted", "rollout:edited", "rollout:discarded"]


def test_a_draft_over_rest(alias: Alias, candidate: AdapterVersion, ci: str) -> None:
    api = APIClient(headers={"Authorization": f"Bearer {ci}"})
    body = {"alias": alias.name, "candidate": candidate.served_name, "steps": STEPS, "reason": "later", "draft": True}
    created = api.post("/api/v1/rollouts/", body).json()
    assert (created["status"], created["opened_at"]) == ("draft", None)
    path = f"/api/v1/rollouts/{created['id']}/"
    edited = api.patch(path, {"steps": [{"weight": 3}], "reason": "less", "expected_generation": 1})
    assert (edited.status_code, edited.json()["weight"], edited.json()["generation"]) == (200, 3, 2)
    assert api.post(f"{path}start/", {"reason": "go", "expected_generation": 1}).status_code == 409
    assert api.post(f"{path}start/", {"reason": "go", "expected_generation": 2}).json()["status"] == "loading"
    assert api.patch(path, {"steps": [{"weight": 4}], "reason": "more"}).status_code == 409
    assert api.post(f"{path}discard/", {"reason": "no"}).status_code == 409


def test_an_alias_does_not_move_under_a_rollout(rollout: Rollout, alice: User) -> None:
    with pytest.raises(Conflict, match="rollout"):
        rollout.alias.move(rollout.candidate, expected=rollout.stable, reason="jump", by=alice.as_actor())


def test_of_many_promotions_one_wins(fresh_database: str, rollout: Rollout, alice: User) -> None:
    generation = rollout.generation

    def promote(_: int) -> str:
        try:
            Rollout.objects.get(pk=rollout.pk).promote(
                reason="race", by=alice.as_actor(), expected_generation=generation
            )
        except Conflict as error:
            return error.code
        finally:
            connection.close()
        return "won"

    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(promote, range(16)))
    assert outcomes.count("won") == 1
    assert tags().count("rollout:promoted") == 1
    assert verify(rollout.alias.project)[1] == []
