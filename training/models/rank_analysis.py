"""Rank analyses: one TARS result, kept so that another budget can be planned at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from django.db import models, transaction

from adapterhub.accounts.actor import Actor
from adapterhub.accounts.models import Project
from adapterhub.api.errors import Invalid
from adapterhub.audit.tags import Tag
from adapterhub.jobs.models import JobStatus
from registry.models import BaseModel
from training.models.dataset import Dataset
from training.models.job import GpuJob
from training.tars import allocation

REFERENCE = Path(__file__).parent.parent / "reference.txt"
BUDGET_KINDS = {"uniform_rank": "uniform", "parameters": "params", "bytes": "bytes"}


class RankAnalysis(GpuJob):
    """Sensitivity and divergence of each module, and the ranks that the budget buys."""

    class Preset(models.TextChoices):
        SEED = "seed"
        UNIFORM = "uniform"

    preset = models.CharField(max_length=20, choices=Preset.choices, default=Preset.SEED)
    budget = models.JSONField()
    rank_min = models.PositiveIntegerField(default=4)
    rank_max = models.PositiveIntegerField(default=32)
    quantum = models.PositiveIntegerField(default=4)
    samples = models.PositiveIntegerField(default=48)
    max_length = models.PositiveIntegerField(default=192)
    plan = models.JSONField(null=True, editable=False)

    tags = {
        JobStatus.SUCCEEDED: Tag.RANK_ANALYSIS_SUCCEEDED,
        JobStatus.FAILED: Tag.RANK_ANALYSIS_FAILED,
        JobStatus.CANCELLED: Tag.RANK_ANALYSIS_CANCELLED,
    }

    class Meta(GpuJob.Meta):
        verbose_name_plural = "rank analyses"

    def __str__(self) -> str:
        return f"rank analysis of {self.dataset}"

    @classmethod
    def launch(
        cls, *, project: Project, base_model: BaseModel, dataset: Dataset, by: Actor, **fields: Any
    ) -> RankAnalysis:
        """Queue an analysis. Raises Invalid when the budget cannot be met by any ranks in the bounds."""
        analysis = cls(project=project, base_model=base_model, dataset=dataset, created_by=by.user, **fields)
        analysis.require_of_project("dataset", dataset)
        check_budget(analysis)
        with transaction.atomic():
            analysis.request(Tag.RANK_ANALYSIS_REQUESTED, by=by, after={"budget": analysis.budget})
        return analysis

    def child_arguments(self, folder: Path) -> list[str]:
        """What the gpu worker runs."""
        ((kind, value),) = self.budget.items()
        data = self.dataset.folder()
        return [
            "training.tars",
            "--model", str(self.base_model.folder),
            "--data", str(data / "train.jsonl"),
            "--reference", str(REFERENCE),
            "--budget", f"{BUDGET_KINDS[kind]}:{value}",
            "--preset", self.preset,
            "--rank-min", str(self.rank_min),
            "--rank-max", str(self.rank_max),
            "--quantum", str(self.quantum),
            "--samples", str(self.samples),
            "--max-length", str(self.max_length),
            "--events", str(folder / "events.jsonl"),
            "--out", str(folder / "plan.json"),
        ]  # fmt: skip

    @property
    def start_values(self) -> Path:
        """Where the analysis leaves directions for A to start from, when it finds some."""
        return self.folder / "plan.init.safetensors"

    def succeeded(self, folder: Path) -> None:
        """Keep the plan and end, under the fence."""
        plan = json.loads((folder / "plan.json").read_bytes())
        with transaction.atomic():
            self.write(plan=plan)
            self.end(JobStatus.SUCCEEDED)
            self.record_end(evidence={"verdict": plan["verdict"], "parameters": plan["parameters"]})

    def reallocate(self, budget: dict[str, int]) -> dict[str, Any]:
        """The plan for another budget, from the stored scores. Raises Invalid before the analysis has one."""
        if not self.plan:
            raise Invalid(f"The analysis is {self.status}: it has no scores yet.", code="no_scores")
        ((kind, value),) = budget.items()
        try:
            return allocation.reallocate(self.plan, BUDGET_KINDS[kind], value)
        except allocation.AllocationError as error:
            raise Invalid(str(error), field="budget", code="bad_budget") from None


def check_budget(analysis: RankAnalysis) -> None:
    """Refuse at once what the allocation would refuse after the whole analysis."""
    ((kind, value),) = analysis.budget.items()
    shapes = list(analysis.base_model.linear_shapes().values()) * analysis.base_model.layers
    try:
        allocation.check_budget(
            BUDGET_KINDS[kind], value, shapes, analysis.rank_min, analysis.rank_max, analysis.quantum
        )
    except allocation.AllocationError as error:
        raise Invalid(str(error), field="budget", code="bad_budget") from None
