"""A rollout against a model of it: whatever happens in whatever order, it is where the table says."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
from django.db import connection, transaction
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapterhub.accounts.models import User
from adapterhub.audit.models import AuditEvent
from adapterhub.core.errors import Conflict
from registry.models import AdapterVersion, Alias, Rollout
from registry.rollouts.controller import LOOP
from registry.serving.reconciler import RECONCILER

STEPS = [{"weight": 5}, {"weight": 20}, {"weight": 50}]
RAILS = [{"metric": "error_rate", "margin": 2}]
LIVE = ("running", "awaiting_approval")
# (verb, state) -> next state; what is not here is refused and changes nothing.
TABLE = {
    ("open", "draft"): "loading",
    ("edit", "draft"): "draft",
    ("discard", "draft"): "discarded",
    ("start", "loading"): "running",
    ("replica loss", "loading"): "failed",
    **{(verb, state): "paused" for verb in ("pause", "metric loss") for state in LIVE},
    ("resume", "paused"): "running",
    ("advance", "running"): "running",
    ("advance", "awaiting_approval"): "running",
    ("wait", "running"): "awaiting_approval",
    **{("set weight", state): state for state in (*LIVE, "paused")},
    **{("promote", state): "promoted" for state in (*LIVE, "paused")},
    **{
        (verb, state): "rolled_back"
        for verb in ("rollback", "guardrail")
        for state in ("loading", *LIVE, "paused", "promoted", "rolled_back")
    },
}


def verbs(rollout: Rollout, user: User) -> dict[str, Callable[[], None]]:
    person = {"reason": "because", "by": user.as_actor()}
    loop = {"reason": "the numbers", "by": LOOP, "evidence": {"action": "told"}}
    return {
        "open": lambda: rollout.start(**person),
        "edit": lambda: rollout.edit(steps=STEPS, **person),
        "discard": lambda: rollout.discard(**person),
        "start": lambda: rollout.started(by=RECONCILER),
        "replica loss": lambda: rollout.refused(reason="NaN", by=RECONCILER),
        "pause": lambda: rollout.pause(**person),
        "metric loss": lambda: rollout.pause(**loop),
        "resume": lambda: rollout.resume(**person),
        "advance": lambda: rollout.advance(**person),
        "wait": lambda: rollout.wait_for_approval(**loop),
        "set weight": lambda: rollout.set_weight(33, **person),
        "promote": lambda: rollout.promote(**person),
        "rollback": lambda: rollout.rollback(**person),
        "guardrail": lambda: rollout.rollback(**loop),
    }


VERBS = (
    "open",
    "edit",
    "discard",
    "start",
    "replica loss",
    "pause",
    "metric loss",
    "resume",
    "advance",
    "wait",
    "set weight",
    "promote",
    "rollback",
    "guardrail",
)
HISTORIES = st.lists(st.sampled_from(VERBS), max_size=12).flatmap(
    lambda later: st.sampled_from([later, ["open", *later], ["open", "start", *later]])
)


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(history=HISTORIES)
def test_no_history_leaves_the_table(alias: Alias, candidate: AdapterVersion, alice: User, history: list[str]) -> None:
    with transaction.atomic():
        rollout = Rollout.create(
            alias=alias,
            candidate=candidate,
            steps=STEPS,
            guardrails=RAILS,
            reason="try",
            by=alice.as_actor(),
            draft=True,
        )
        salt, state = rollout.salt, "draft"
        for verb in history:
            state = after(rollout, verb, state, alice)
            rollout.refresh_from_db()
            assert (rollout.status, rollout.salt) == (state, salt), (history, verb)
            assert Alias.objects.get(pk=alias.pk).version_id == serves(rollout)
        transaction.set_rollback(True)


def after(rollout: Rollout, verb: str, state: str, user: User) -> str:
    """The state that the model has next; a refusal must have left no event, a move exactly one."""
    expected = TABLE.get((verb, state))
    if verb == "advance" and rollout.is_last_step:
        expected = None
    events, generation = AuditEvent.objects.about(rollout).count(), rollout.generation
    try:
        with transaction.atomic():
            verbs(rollout, user)[verb]()
    except Conflict:
        assert expected is None, (verb, state)
        assert AuditEvent.objects.about(rollout).count() == events
        return state
    assert expected is not None, (verb, state)
    moved = rollout.generation - generation
    assert moved == (0 if (state, expected) == ("rolled_back", "rolled_back") else 1)
    assert AuditEvent.objects.about(rollout).count() == events + moved
    return expected


def serves(rollout: Rollout) -> int:
    return rollout.candidate_id if rollout.status == "promoted" else rollout.stable_id


@pytest.fixture
def rollout(alias: Alias, candidate: AdapterVersion, alice: User) -> Rollout:
    rollout = Rollout.create(alias=alias, candidate=candidate, steps=STEPS, reason="try", by=alice.as_actor())
    rollout.started(by=RECONCILER)
    return rollout


def test_of_fifty_promotions_one_wins_and_rollback_wins_over_it(
    fresh_database: str, rollout: Rollout, alice: User
) -> None:
    together = Barrier(50)

    def promote(_: int) -> str:
        try:
            together.wait(60)
            own_copy = Rollout.objects.get(pk=rollout.pk)
            own_copy.promote(reason="race", by=alice.as_actor(), expected_generation=rollout.generation)
        except Conflict as error:
            return error.code
        finally:
            connection.close()
        return "won"

    with ThreadPoolExecutor(50) as pool:
        outcomes = list(pool.map(promote, range(50)))
    assert outcomes.count("won") == 1
    rollout.rollback(reason="after all", by=alice.as_actor())
    assert rollout.status == "rolled_back"
    assert Alias.objects.get(pk=rollout.alias_id).version_id == rollout.stable_id
