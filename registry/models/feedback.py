"""What users said of an answer, joined to the arm that gave it."""

from __future__ import annotations

from django.db import IntegrityError, models, transaction
from django.db.models import Q
from django.utils.timezone import now

from adapterhub.api.errors import Conflict
from registry.metrics import of_feedback
from registry.models.minute import Measured, RolloutMinute
from registry.models.response import Response


class Outcome(models.TextChoices):
    GOOD = "good"
    BAD = "bad"


class Feedback(models.Model):
    """One judgement of one answer: an outcome, a score in the caller's own scale, or both."""

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
        """Keep it and add it to the minute of the answer. Raises Conflict when the answer has its feedback."""
        try:
            with transaction.atomic():
                feedback = cls.objects.create(response=response, outcome=outcome, score=score)
                RolloutMinute.add(feedback.measured())
        except IntegrityError:
            raise Conflict(
                f"{response} has its feedback already.", field="response_id", code="feedback_given"
            ) from None
        return feedback

    def measured(self) -> list[Measured]:
        answer = self.response
        if answer.rollout is None or answer.arm not in ("candidate", "control") or not answer.is_sticky:
            return []
        told = of_feedback(self.outcome or None, self.score)
        return [(answer.rollout, answer.arm, answer.at, metric, value) for metric, value in told.items()]
