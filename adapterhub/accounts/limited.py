"""The columns of projects and API tokens that limit what routers take of them."""

from __future__ import annotations

from django.db import models


class Limited(models.Model):
    """An abstract model with limits on what routers accept from a project or token; null means no limit of its own."""

    requests_per_s = models.FloatField(null=True, blank=True, help_text="Requests a second to routers; null: no limit.")
    tokens_per_min = models.PositiveIntegerField(
        null=True, blank=True, help_text="Tokens of questions and answers a minute; null: no limit."
    )

    class Meta:
        abstract = True

    @property
    def is_limited(self) -> bool:
        """Return True if routers limit what it sends."""
        return self.requests_per_s is not None or self.tokens_per_min is not None


# A condition on the columns of Limited.
LIMITS_ABOVE_ZERO = ~models.Q(tokens_per_min=0) & ~models.Q(requests_per_s__lte=0)
