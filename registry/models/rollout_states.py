"""Where a rollout may be, and what may follow what."""

from __future__ import annotations

from django.db import models


class RolloutStatus(models.TextChoices):
    """Promoting and rolling back are no states: each is one transaction, and nobody could see it half done."""

    DRAFT = "draft"
    DISCARDED = "discarded"
    LOADING = "loading"
    RUNNING = "running"
    PAUSED = "paused"
    AWAITING_APPROVAL = "awaiting_approval", "awaiting approval"
    PROMOTED = "promoted"
    ROLLED_BACK = "rolled_back", "rolled back"
    FAILED = "failed"


# The candidate gets its share; waiting for an approval changes nothing for the users.
SERVING = (RolloutStatus.RUNNING, RolloutStatus.AWAITING_APPROVAL)
ACTIVE = (RolloutStatus.LOADING, RolloutStatus.PAUSED, *SERVING)
# What may follow what; rollback may follow everything that is active, so that it wins every race.
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
