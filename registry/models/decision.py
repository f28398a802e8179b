"""Decisions on rollouts, each with the verdicts on which it was made; rows never change."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from django.db import models
from django.utils.timezone import now

from adapterhub.audit.tags import Tag
from adapterhub.core.actor import Actor
from registry.models.judgement import Numbers, judgement
from registry.models.rollout_states import SERVING, RolloutStatus

Rollout = Any  # the model, which imports this module


class Outcome(models.TextChoices):
    """The kinds of decision on a rollout: next step, wait for approval, pause, resume, promotion, rollback, failure."""

    STEPPED = "stepped", "next step"
    WAITS = "awaits_approval", "waits for an approval"
    PAUSED = "paused"
    RESUMED = "resumed"
    PROMOTED = "promoted"
    ROLLED_BACK = "rolled_back", "rolled back"
    FAILED = "failed"


TAGS = {
    Tag.ROLLOUT_STEPPED: Outcome.STEPPED,
    Tag.ROLLOUT_WAITS: Outcome.WAITS,
    Tag.ROLLOUT_PAUSED: Outcome.PAUSED,
    Tag.ROLLOUT_RESUMED: Outcome.RESUMED,
    Tag.ROLLOUT_PROMOTED: Outcome.PROMOTED,
    Tag.ROLLOUT_ROLLED_BACK: Outcome.ROLLED_BACK,
    Tag.ROLLOUT_FAILED: Outcome.FAILED,
}
# After these the candidate has no control beside it: there is nothing new to judge.
UNMEASURED = (Outcome.PAUSED, Outcome.PROMOTED)
MEASURED = (RolloutStatus.LOADING, *SERVING)


class RolloutDecision(models.Model):
    """One decision on a rollout: who made it, why, and the verdicts at that time.

    A database trigger refuses changes.
    """

    rollout = models.ForeignKey("registry.Rollout", models.PROTECT, related_name="decisions")
    at = models.DateTimeField(default=now)
    outcome = models.CharField(max_length=20, choices=Outcome.choices)
    actor_name = models.CharField(max_length=200)
    reason = models.TextField(blank=True)
    verdicts = models.JSONField(help_text="The analysis as the decision was made on it, with the time of its numbers.")

    class Meta:
        ordering = ["at", "id"]

    def __str__(self) -> str:
        return f"{self.rollout} {self.get_outcome_display()}"

    @classmethod
    def freeze(
        cls, rollout: Rollout, tag: Tag, *, by: Actor, reason: str, verdicts: dict[str, Any] | None = None
    ) -> RolloutDecision:
        """Store the decision that belongs to the audit tag (a key of TAGS), with its verdicts, and return it.

        Without `verdicts` they are those of the previous decision if that was a pause or a promotion, else computed
        from the numbers now.
        """
        before = cls.objects.filter(rollout=rollout).last()
        earlier = before.verdicts if before and before.outcome in UNMEASURED else None
        return cls.objects.create(
            rollout=rollout,
            outcome=TAGS[tag],
            actor_name=by.name,
            reason=reason,
            verdicts=verdicts or earlier or judgement(rollout, now()),
        )


def verdicts_of(rollout: Rollout, at: datetime | None = None, numbers: Numbers | None = None) -> dict[str, Any] | None:
    """Return the verdicts of a rollout: those of its last decision if it is paused or has ended, else computed for now.

    For a rollout that ended before decisions were recorded they are computed for the time of its end. None if it was
    never opened. `at` stands for now; `numbers` are its measurements, if the caller has read them.
    """
    if rollout.opened_at is None:
        return None
    last = list(rollout.decisions.all())[-1:] if rollout.status not in MEASURED else []
    if last:
        return dict(last[0].verdicts)
    return judgement(rollout, rollout.ended_at or at or now(), numbers=numbers)
