"""States of a rollout, and the permitted transitions between them."""

from __future__ import annotations

from django.db import models


class RolloutStatus(models.TextChoices):
    """The states of a rollout.

    Promoting and rolling back are not states: each is one transaction, whose intermediate steps nobody can see.
    """

    DRAFT = "draft"
    DISCARDED = "discarded"
    LOADING = "loading"
    RUNNING = "running"
    PAUSED = "paused"
    AWAITING_APPROVAL = "awaiting_approval", "awaiting approval"
    PROMOTED = "promoted"
    ROLLED_BACK = "rolled_back", "rolled back"
    FAILED = "failed"


# States in which the candidate gets its share of traffic; users do not notice a wait for an approval.
SERVING = (RolloutStatus.RUNNING, RolloutStatus.AWAITING_APPROVAL)
ACTIVE = (RolloutStatus.LOADING, RolloutStatus.PAUSED, *SERVING)
# Target state -> the states it may follow. A rollback may follow every active state, so that it wins every race.
MOVES = {
    RolloutStatus.DRAFT: (RolloutStatus.DRAFT,),
    RolloutStatus.DISCARDED: (RolloutStatus.DRAFT,),
    RolloutStatus.LOADING: (RolloutStatus.DRAFT,),
    RolloutStatus.RUNNING: (RolloutStatus.LOADING, RolloutStatus.PAUSED, RolloutStatus.AWAITING_APPROVAL),
    RolloutStatus.PAUSED: SERVING,
    RolloutStatus.AWAITING_APPROVAL: (RolloutStatus.RUNNING,),
    RolloutStatus.PROMOTED: (*SERVING, RolloutStatus.PAUSED),
    RolloutStatus.ROLLED_BACK: (*ACTIVE, RolloutStatus.PROMOTED),
    RolloutStatus.FAILED: (RolloutStatus.LOADING,),
}


def in_words(status: str) -> str:
    """Return a rollout's state as it is written in a sentence: "rolled back"."""
    return RolloutStatus(status).label.lower()
