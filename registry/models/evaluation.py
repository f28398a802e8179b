"""What an evaluation measured of a version, kept for ever; promotions ask it. Training writes the rows."""

from __future__ import annotations

import uuid
from typing import Any

from django.db import models
from django.utils.timezone import now

from adapterhub.core.errors import Conflict
from registry.models.adapter import AdapterVersion
from registry.models.approval import digest_of


class VersionEvaluation(models.Model):
    """One measurement of a version on its 16-bit base, beside the base alone and, where named, another version."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    version = models.ForeignKey(AdapterVersion, models.PROTECT, related_name="evaluations")
    against = models.ForeignKey(AdapterVersion, models.PROTECT, null=True, related_name="+")
    base_digest = models.CharField(max_length=64)
    dataset_digest = models.CharField(max_length=64, blank=True)
    metrics = models.JSONField(help_text="arms, differences with 95 % intervals, tokens, examples")
    created_at = models.DateTimeField(default=now, editable=False)

    class Meta:
        ordering = ["-created_at"]

    def __str__(self) -> str:
        return f"evaluation of {self.version}"

    def difference_to_other(self) -> dict[str, float] | None:
        """Nats a token of this version minus the other: {mean, low, high}."""
        return self.metrics.get("differences", {}).get("against")


def unmeasured(version: AdapterVersion) -> str:
    """Why nothing is known of the version on the base that will serve it; nothing when something is."""
    if version.method != "qlora" or version.metrics.get("loss_served") is not None or measured(version).exists():
        return ""
    return f"{version} was trained on a 4-bit base and never measured on the 16-bit one: evaluate it first."


def measured(version: AdapterVersion) -> models.QuerySet[VersionEvaluation]:
    return version.evaluations.filter(base_digest=version.base_digest).exclude(dataset_digest="")


def evaluations_of(version: AdapterVersion) -> list[dict[str, Any]]:
    """Every evaluation of the version as a signer sees it: one more, and what was signed for is another thing."""
    rows = version.evaluations.select_related("against__adapter").order_by("created_at", "id")
    return [
        {"id": str(row.pk), "dataset": row.dataset_digest, "against": row.against and row.against.served_name,
         "measured": {name: row.metrics[name] for name in row.metrics if name != "examples"},
         "digest": digest_of(row.metrics)}
        for row in rows
    ]  # fmt: skip


def objection(version: AdapterVersion, stable: AdapterVersion) -> str:
    """Why the version may not replace the stable one, as far as evaluations say; nothing when none does."""
    last = measured(version).filter(against=stable).first()
    change: dict[str, Any] | None = last.difference_to_other() if last else None
    if change and change["low"] > 0:
        interval = f"{change['low']:.3f} to {change['high']:.3f}"
        return f"{version} is worse than {stable}: its held-out loss is {interval} higher (95 %)."
    return unmeasured(version)


def require_no_objection(version: AdapterVersion, stable: AdapterVersion | None = None) -> None:
    """Raises Conflict when the evaluations speak against serving the version, in place of the stable one if given."""
    if message := objection(version, stable) if stable else unmeasured(version):
        raise Conflict(message, field="version", code="evaluation_objects")
