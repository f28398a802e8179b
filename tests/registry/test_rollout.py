from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from django.db import connection

from adapterhub.accounts.models import User
from adapterhub.api.errors import Conflict, Invalid, InvalidTransition, NotAllowed
from adapterhub.audit.models import AuditEvent, verify
from registry.models import AdapterVersion, Alias, Rollout, RolloutStatus
from registry.reconcile import RECONCILER

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
