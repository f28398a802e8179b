"""Idempotency keys: a POST that is sent twice has one effect and one answer."""

from __future__ import annotations

from django.db import models
from django.utils.timezone import now


class IdempotentRequest(models.Model):
    """The first answer, encrypted, to a POST with an Idempotency-Key.

    `status` is null while the request is in flight.
    """

    caller = models.CharField(max_length=40)
    key = models.CharField(max_length=255)
    path = models.CharField(max_length=500)
    fingerprint = models.CharField(max_length=64)
    status = models.PositiveSmallIntegerField(null=True)
    sealed = models.BinaryField(null=True, help_text="The answer's bytes: it may hold a secret that is shown once.")
    # An answer that a release without this column kept is repeated to nobody: there is no project 0.
    used_scopes = models.JSONField(
        default=list, db_default=[[0, "admin"]], help_text="What the caller needed: [project, scope] pairs."
    )
    created_at = models.DateTimeField(default=now)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["caller", "key", "path"], name="one_answer_per_key")]

    def __str__(self) -> str:
        return f"{self.path} {self.key}"
