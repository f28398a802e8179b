"""User feedback on answers, counted for the rollout arm that gave the answer."""

from __future__ import annotations

from django.db import IntegrityError, models, transaction
from django.db.models import Q
from django.utils.timezone import now

from adapterhub.core.errors import Conflict
from registry.experiments.metrics import of_feedback
from registry.models.response import Response
from registry.models.rollout_measurement import RolloutUnit


class Outcome(models.TextChoices):
    """A person's judgement of an answer."""

    GOOD = "good"
    BAD = "bad"


class Feedback(models.Model):
    """Feedback on one answer: an outcome, a score on the caller's own scale, or both."""

    response = models.OneToOneField(Response, models.CASCADE, related_name="feedback")
    outcome = models.CharField(max_length=10, choices=Outcome.choices, blank=True)
    score = models.FloatField(null=True)
    at = models.DateTimeField(default=now, editable=False)

    class Meta:
        verbose_name_plural = "feedback"
        constraints = [
            models.CheckConstraint(condition=~Q(outcome="") | Q(score__isnull=False), name="feedback_says_something")
        ]

    def __str__(self) -> str:
        return f"{self.response}: {self.outcome or self.score}"

    @classmethod
    def give(cls, response: Response, *, outcome: str = "", score: float | None = None) -> Feedback:
        """Store feedback, count it in the answer's rollout if it has one, and return it.

        `outcome` is one of Outcome or "" for none, `score` None for none; the caller gives at least one of both. Raises
        Conflict if the answer has feedback already.
        """
        try:
            with transaction.atomic():
                feedback = cls.objects.create(response=response, outcome=outcome, score=score)
                feedback.count()
        except IntegrityError:
            raise Conflict(f"{response} already has feedback.", field="response_id", code="feedback_given") from None
        return feedback

    def count(self) -> None:
        """Add the feedback to the measurements of the answer's rollout, if it has one and its user is counted.

        Only a user's first value of a metric counts.
        """
        answer = self.response
        if answer.rollout is None or answer.unit_id is None:
            return
        user = RolloutUnit.objects.select_for_update().get(pk=answer.unit_id)
        values = of_feedback(self.outcome or None, self.score)
        RolloutUnit.count_first((user, (answer.rollout, answer.arm, answer.at, *one)) for one in values.items())
