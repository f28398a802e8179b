"""Evaluation results of versions, kept for ever. Training stores them, and promotions are checked against them."""

from __future__ import annotations

import uuid
from typing import Any

from django.db import models
from django.utils.timezone import now

from adapterhub.core.errors import Conflict
from registry.models.adapter import AdapterVersion
from registry.models.approval import digest_of
from registry.models.base_model import BaseModel


class VersionEvaluation(models.Model):
    """One evaluation of a version on its 16-bit base, next to the base alone and, if given, another version."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    version = models.ForeignKey(AdapterVersion, models.PROTECT, related_name="evaluations")
    against = models.ForeignKey(AdapterVersion, models.PROTECT, null=True, related_name="+")
    base_digest = models.CharField(max_length=64)
    dataset_digest = models.CharField(max_length=64, blank=True)
    variant = models.ForeignKey(BaseModel, models.PROTECT, null=True, related_name="variant_measurements")
    metrics = models.JSONField(help_text="arms, differences with 95 % intervals, tokens, examples")
    created_at = models.DateTimeField(default=now, editable=False)

    class Meta:
        ordering = ["-created_at"]

    def __str__(self) -> str:
        return f"evaluation of {self.version}"

    def difference_to_other(self) -> dict[str, float] | None:
        """Return the difference in loss to the other version, in nats per token: {mean, low, high}; below 0 is better.

        None if the evaluation was without another version.
        """
        difference: dict[str, float] | None = self.metrics.get("differences", {}).get("against")
        return difference


class ServedComparison(models.Model):
    """The comparison of an engine's numbers for a version with PEFT's: one for each version and engine release.

    `effect` is the mean absolute change of a token's log-probability by the adapter in PEFT, `difference` the mean
    distance of the engine's change from it; both in nats. `details` holds every number.
    """

    class Verdict(models.TextChoices):
        """The outcome of a comparison: the engine does as PEFT, otherwise than PEFT, or as if there were no adapter.

        NOT_COMPARED means that the numbers could not be computed.
        """

        MATCHES = "matches"
        DIFFERS = "differs"
        NO_EFFECT = "no_effect"
        NOT_COMPARED = "not_compared"

    version = models.ForeignKey(AdapterVersion, models.PROTECT, related_name="served_comparisons")
    engine_version = models.CharField(max_length=60)
    replica = models.CharField(max_length=300)
    verdict = models.CharField(max_length=20, choices=Verdict.choices)
    reason = models.TextField(blank=True)
    tokens = models.PositiveIntegerField(default=0)
    effect = models.FloatField(null=True)
    difference = models.FloatField(null=True)
    details = models.JSONField(default=dict)
    created_at = models.DateTimeField(default=now, editable=False)

    class Meta:
        ordering = ["-created_at"]
        constraints = [
            models.UniqueConstraint(fields=["version", "engine_version"], name="one_comparison_per_engine_release")
        ]

    def __str__(self) -> str:
        return f"{self.version} on {self.engine_version}: {self.verdict}"


def unmeasured(version: AdapterVersion) -> str:
    """Return an error message for a QLoRA version never measured on the 16-bit base that serves it, else ""."""
    if version.method != "qlora" or version.metrics.get("loss_served") is not None or measured(version).exists():
        return ""
    return f"{version} was trained on a 4-bit base model and never measured on the 16-bit one: evaluate it first."


def measured(version: AdapterVersion) -> models.QuerySet[VersionEvaluation]:
    """Return the evaluations of the version on its own base model and a dataset, newest first."""
    return version.evaluations.filter(base_digest=version.base_digest).exclude(dataset_digest="")


def evaluations_of(version: AdapterVersion) -> list[dict[str, Any]]:
    """Return every evaluation of the version as a dict for JSON, oldest first; approvers sign them as evidence."""
    rows = version.evaluations.select_related("against__adapter").order_by("created_at", "id")
    return [
        {
            "id": str(row.pk),
            "dataset": row.dataset_digest,
            "against": row.against and row.against.served_name,
            "measured": {name: row.metrics[name] for name in row.metrics if name != "examples"},
            "digest": digest_of(row.metrics),
        }
        for row in rows
    ]


def objection(version: AdapterVersion, stable: AdapterVersion) -> str:
    """Return an error message if evaluations speak against replacing `stable` by the version, otherwise "".

    They do if the latest one against `stable` shows a significantly higher loss, or if a QLoRA version was never
    measured on its 16-bit base.
    """
    last = measured(version).filter(against=stable).first()
    change: dict[str, Any] | None = last.difference_to_other() if last else None
    if change and change["low"] > 0:
        interval = f"{change['low']:.3f} to {change['high']:.3f}"
        return f"{version} is worse than {stable}: its held-out loss is {interval} higher (95 %)."
    return unmeasured(version)


def require_scores(version: AdapterVersion, policy: dict[str, Any]) -> None:
    """Check that the version has the scores on lm-eval tasks that an alias' policy asks for. Raises Conflict if not.

    Its latest evaluation on each task counts.
    """
    for wanted in policy.get("evaluations", []):
        if message := shortfall(version, wanted):
            raise Conflict(message, field="version", code="evaluation_objects")


def shortfall(version: AdapterVersion, wanted: dict[str, Any]) -> str:
    """Return an error message if the version lacks a score that a policy asks for, otherwise "".

    `wanted` is one entry of the policy's `evaluations`.
    """
    task, metric = wanted["task"], wanted["metric"]
    last = version.evaluations.filter(base_digest=version.base_digest, metrics__task__name=task).first()
    if last is None:
        return f"{version} was never measured on the task {task}, which the policy asks for: evaluate it first."
    score = last.metrics["scores"].get(metric)
    if score is None:
        names = ", ".join(last.metrics["scores"])
        return f"The task {task} has no metric {metric}, which the policy asks for; it has {names}."
    if score < wanted.get("at_least", score):
        return f"{metric} of {version} on the task {task} is {score:.4g}; the policy asks for {wanted['at_least']:g}."
    if score > wanted.get("at_most", score):
        return f"{metric} of {version} on the task {task} is {score:.4g}; the policy allows {wanted['at_most']:g}."
    return ""


def require_no_objection(version: AdapterVersion, stable: AdapterVersion | None = None) -> None:
    """Raise Conflict if an evaluation speaks against serving the version, see `objection`.

    Without `stable` only a QLoRA version that was never measured on its 16-bit base is refused.
    """
    if message := objection(version, stable) if stable else unmeasured(version):
        raise Conflict(message, field="version", code="evaluation_objects")
