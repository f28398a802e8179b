"""Answers with the version that gave them, one row for each, from the routers' reports."""

from __future__ import annotations

from django.db import models

from adapterhub.accounts.models import Project
from registry.models.adapter import AdapterVersion
from registry.models.rollout import Rollout
from registry.models.rollout_measurement import RolloutUnit


class Response(models.Model):
    """An answer that a router sent: version, arm, times and numbers of tokens. The texts are not stored."""

    id = models.CharField(primary_key=True, max_length=64)
    project = models.ForeignKey(Project, models.PROTECT, related_name="+")
    alias_name = models.CharField(max_length=50, blank=True)
    version = models.ForeignKey(AdapterVersion, models.PROTECT, related_name="responses")
    rollout = models.ForeignKey(Rollout, models.PROTECT, null=True, related_name="responses")
    unit = models.ForeignKey(
        RolloutUnit,
        models.PROTECT,
        null=True,
        db_index=False,
        related_name="+",
        help_text="The user, as a hash, whom the rollout counts it for.",
    )
    arm = models.CharField(max_length=20)
    is_sticky = models.BooleanField()
    status = models.PositiveSmallIntegerField()
    at = models.DateTimeField()
    ttft_ms = models.FloatField(null=True)
    total_ms = models.FloatField()
    prompt_tokens = models.PositiveIntegerField(default=0)
    completion_tokens = models.PositiveIntegerField(default=0)

    class Meta:
        ordering = ["-at"]
        indexes = [models.Index(fields=["version", "at"], name="responses_by_version")]

    def __str__(self) -> str:
        return self.id

    @property
    def alias_ref(self) -> str:
        """The reference that names the alias among all projects: `project.name`."""
        return f"{self.project.slug}.{self.alias_name}"
