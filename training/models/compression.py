"""Compressions: a stored version is made smaller after its training, as a new version that records its source."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from django.db import models, transaction
from django.db.models import Q
from django.utils.timezone import now

from adapterhub.audit.tags import Tag
from adapterhub.core.actor import Actor
from adapterhub.core.counts import counted
from adapterhub.core.errors import Invalid
from adapterhub.jobs.models import JobStatus
from adapterhub.workspace import store
from registry.models import AdapterVersion
from registry.models.adapter import VersionStatus
from training.models.dataset import Dataset
from training.models.job import GpuJob
from training.models.rank_analysis import BUDGET_WORDS, REFERENCE
from training.tars import allocation

MAX_RANK = "max_rank"


class Compression(GpuJob):
    """A job that truncates a version's updates to their leading directions, within a budget over all modules.

    With the budget `max_rank` no module gets a higher rank, and the version may be one that engines cannot serve but
    PEFT computes.
    """

    source = models.ForeignKey(AdapterVersion, models.PROTECT, related_name="compressions")
    # Django lets a model override a field of its abstract base.
    dataset = models.ForeignKey(  # type: ignore[assignment]
        Dataset, models.PROTECT, null=True, blank=True, related_name="+"
    )
    budget = models.JSONField()
    keeps_merged = models.BooleanField(default=False, db_default=False)
    version = models.OneToOneField(
        AdapterVersion, models.PROTECT, null=True, editable=False, related_name="compression"
    )
    loss_before = models.FloatField(null=True, editable=False)
    loss_after = models.FloatField(null=True, editable=False)

    tags = {
        JobStatus.SUCCEEDED: Tag.COMPRESSION_SUCCEEDED,
        JobStatus.FAILED: Tag.COMPRESSION_FAILED,
        JobStatus.STOPPING: Tag.COMPRESSION_CANCEL_ASKED,
        JobStatus.CANCELLED: Tag.COMPRESSION_CANCELLED,
    }

    class Meta(GpuJob.Meta):
        constraints = [
            *GpuJob.Meta.constraints,
            models.CheckConstraint(
                condition=~Q(status="succeeded") | Q(version__isnull=False),
                name="a_succeeded_compression_has_a_version",
            ),
        ]

    def __str__(self) -> str:
        return f"compression of {self.source}"

    @classmethod
    def launch(
        cls,
        source: AdapterVersion,
        budget: dict[str, int],
        *,
        by: Actor,
        dataset: Dataset | None = None,
        keeps_merged: bool = False,
    ) -> Compression:
        """Queue a compression, record that, and return it.

        `budget` is {kind: number}, of the kind `uniform_rank`, `parameters`, `bytes` or `max_rank`. The loss is
        measured on `dataset`, else on what the version was trained with. With `keeps_merged` the base model with the
        whole adapter merged into it is stored with the new version. Raises Invalid that names the field if the version
        is not ready, the dataset cannot be used, or the budget makes nothing smaller, and Conflict if the queue is
        full.
        """
        if source.status not in (VersionStatus.READY, VersionStatus.UNSERVABLE):
            raise Invalid(f"{source} is {source.status}, not ready.", field="version", code="version_not_ready")
        check_budget(source, budget, keeps_merged=keeps_merged)
        job = cls(
            project=source.project,
            base_model=source.adapter.base_model,
            dataset=dataset or trained_with(source),
            source=source,
            budget=budget,
            keeps_merged=keeps_merged,
            created_by=by.user,
        )
        job.require_of_project("dataset", job.dataset)
        if job.dataset:
            job.dataset.require_answers()
        with transaction.atomic():
            job.request(Tag.COMPRESSION_REQUESTED, by=by, after={"source": source.served_name, "budget": budget})
        return job

    def child_arguments(self, folder: Path) -> list[str]:
        """Fetch the version's files, empty the output folder, and return the child's arguments after `python -m`.

        Raises ArtifactError if the files are missing or damaged, or the version's signature is not valid, and Invalid
        if the dataset is not ready.
        """
        ((kind, value),) = self.budget.items()
        output = folder / "output"
        shutil.rmtree(output, ignore_errors=True)  # what an earlier attempt left
        output.mkdir()
        if kind == MAX_RANK:
            return self.reduction_arguments(folder, value)
        return [
            "training.tars",
            "compress",
            "--adapter",
            str(self.source.fetch(folder / "source")),
            "--budget",
            f"{BUDGET_WORDS[kind]}:{value}",
            *self.evaluation(),
            "--events",
            str(folder / "events.jsonl"),
            "--out",
            str(output / "adapter"),
        ]

    def reduction_arguments(self, folder: Path, rank: int) -> list[str]:
        """Fetch the version's files and return the arguments of the child that cuts every module to `rank`.

        They are those after `python -m`. Raises ArtifactError if the files are missing or damaged, or the version's
        signature is not valid, and Invalid if the dataset is not ready.
        """
        self.source.require_downloadable()
        source = self.source.stored(folder / "source")
        data = self.dataset.folder() / "eval.jsonl" if self.dataset else REFERENCE
        return [
            "training.recipes.output.reduce",
            *("--adapter", str(source), "--model", str(self.base_model.folder)),
            *("--rank", str(rank), "--data", str(data), "--events", str(folder / "events.jsonl")),
            *(("--merged", str(folder / "output" / "merged")) if self.keeps_merged else ()),
            *("--out", str(folder / "output" / "adapter")),
        ]

    def evaluation(self) -> list[str]:
        """Return the arguments with which the child measures the loss; an empty list without a dataset."""
        if self.dataset is None:
            return []
        return ["--model", str(self.base_model.folder), "--data", str(self.dataset.folder() / "eval.jsonl")]

    def note(self, event: dict[str, Any]) -> None:
        """Store the progress that an event of the child reports, or the loss that it measured.

        Raises StaleAttempt if the lease has passed to a later attempt.
        """
        super().note(event)
        if event["kind"] == "evaluation":
            self.write(**{f"loss_{event['when']}": event["loss"]})

    def succeeded(self, folder: Path) -> None:
        """Publish the smaller version and end the job, with the audit events, in one transaction.

        Raises StaleAttempt if the lease has passed to a later attempt; then nothing is stored.
        """
        report = json.loads((folder / "output" / "adapter.json").read_bytes())
        if self.keeps_merged:
            report["checkpoint"] = store().put_dir(folder / "output" / "merged")
        with transaction.atomic():
            self.heartbeat()
            version = AdapterVersion.publish(
                self.source.adapter,
                folder / "output" / "adapter",
                method=self.source.method,
                by=Actor("system:gpu-worker", "system", user=self.created_by),
                metrics=metrics_of(report),
                lineage=self.lineage() | ({"left_out": report["left_out"]} if "left_out" in report else {}),
            )
            self.write(version=version, loss_before=report.get("loss_before"), loss_after=report.get("loss_after"))
            self.end(JobStatus.SUCCEEDED)
            self.record_end(evidence=report | {"version": version.served_name})

    def lineage(self) -> dict[str, Any]:
        """Return the record of the new version's origin: this job, the source version, the data and the base model."""
        return {
            "compression": str(self.pk),
            "compressed_from": {
                "served_name": self.source.served_name,
                "number": self.source.number,
                "digest": self.source.digest,
            },
            "budget": self.budget,
            "dataset": self.dataset.digest if self.dataset else None,
            "base_model": self.base_model.digest,
            "requested_at": self.created_at.isoformat(),
            "published_at": now().isoformat(),
        }


def trained_with(version: AdapterVersion) -> Dataset | None:
    """Return the project's dataset in the version's lineage; None if there is none, or it holds preferences."""
    dataset = Dataset.objects.filter(project=version.project, digest=version.lineage.get("dataset") or "").first()
    return dataset if dataset and dataset.kind == "answers" else None


def check_budget(version: AdapterVersion, budget: dict[str, int], *, keeps_merged: bool) -> None:
    """Check that the budget allows at least one rank of one module and is smaller than the version. Raises Invalid.

    The budget is {kind: number}. The kind `max_rank` is checked by `check_max_rank`; it is the only one for a version
    that engines cannot serve and for a compression with `keeps_merged`.
    """
    ((kind, value),) = budget.items()
    if kind == MAX_RANK:
        check_max_rank(version, value)
        return
    if version.status == VersionStatus.UNSERVABLE or keeps_merged:
        message = "A version that engines cannot serve is reduced to a rank: name max_rank alone as the budget."
        raise Invalid(message, field="budget", code="bad_budget")
    shapes = version.adapter.base_model.linear_shapes()
    costs = {name: allocation.cost(shapes[name.rsplit(".", 1)[-1]]) for name in version.ranks}
    each = [shapes[name.rsplit(".", 1)[-1]] for name in version.ranks]
    parameters = allocation.budget_parameters(kind, value, each)
    if parameters >= version.parameters:
        message = (
            f"A budget of {counted(parameters, 'parameter')} makes nothing smaller: {version} has "
            f"{version.parameters:,}."
        )
        raise Invalid(message, field="budget", code="bad_budget")
    if parameters < (least := min(costs.values())):
        message = (
            f"A budget of {counted(parameters, 'parameter')} is too small: one rank of one module takes {least:,}."
        )
        raise Invalid(message, field="budget", code="bad_budget")


def check_max_rank(version: AdapterVersion, rank: int) -> None:
    """Raise Invalid unless `rank` is below the version's highest; one that engines cannot serve always passes."""
    if version.status == VersionStatus.READY and rank >= version.max_rank:
        message = f"max_rank {rank} makes nothing smaller: the highest rank of {version} is {version.max_rank}."
        raise Invalid(message, field="budget", code="bad_budget")


def metrics_of(report: dict[str, Any]) -> dict[str, Any]:
    """Return the figures of the child's report under the names of a version's metrics; absent ones are left out."""
    names = {
        "loss_before": "loss_before",
        "loss_after": "loss_after",
        "tokens": "eval_tokens",
        "rows": "eval_rows",
        "parameters_before": "parameters_before",
        "energy_kept": "energy_kept",
        "reconstruction_error": "reconstruction_error",
        "loss_base": "loss_base",
        "checkpoint": "checkpoint",
    }
    return {metric: report[key] for key, metric in names.items() if key in report}
