"""Rank analyses: the result of one TARS analysis, stored so that another budget can be planned at once."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import models, transaction
from django.db.models import Min

from adapterhub.accounts.models import Project
from adapterhub.audit.tags import Tag
from adapterhub.core.actor import Actor
from adapterhub.core.errors import Invalid
from adapterhub.jobs.models import JobStatus
from adapterhub.workspace import store
from registry.models import BaseModel
from training.models import analysis_settings
from training.models.dataset import Dataset
from training.models.job import GpuJob
from training.tars import allocation, verdict
from training.tars.allocation import Bounds
from training.tars.presets import Settings, is_attention, is_open

REFERENCE = Path(__file__).parent.parent / "reference.txt"
BUDGET_WORDS = {kind: word for word, kind in allocation.BUDGET_KINDS.items()}
START_VALUES = "plan.init.safetensors"  # beside plan.json, where the preset has start values


class RankAnalysis(GpuJob):
    """A job that scores each module for a task and plans the ranks within a budget."""

    class Preset(models.TextChoices):
        DEFAULT = "default"
        SEED = "seed"
        UNIFORM = "uniform"
        RACE = "race"

    preset = models.CharField(max_length=20, choices=Preset.choices, default=Preset.DEFAULT)
    settings = models.JSONField(default=dict, help_text="What was chosen instead of the preset's parts.")
    budget = models.JSONField()
    rank_min = models.PositiveIntegerField()
    rank_max = models.PositiveIntegerField(default=32)
    quantum = models.PositiveIntegerField(default=4)
    samples = models.PositiveIntegerField(default=48)
    max_length = models.PositiveIntegerField(default=192)
    plan = models.JSONField(null=True, editable=False)

    tags = {
        JobStatus.SUCCEEDED: Tag.RANK_ANALYSIS_SUCCEEDED,
        JobStatus.FAILED: Tag.RANK_ANALYSIS_FAILED,
        JobStatus.STOPPING: Tag.RANK_ANALYSIS_CANCEL_ASKED,
        JobStatus.CANCELLED: Tag.RANK_ANALYSIS_CANCELLED,
    }

    class Meta(GpuJob.Meta):
        verbose_name_plural = "rank analyses"

    def __str__(self) -> str:
        return f"rank analysis of {self.dataset}"

    @classmethod
    def launch(cls, **wanted: Any) -> RankAnalysis:
        """Queue an analysis with the arguments of `planned`, record that, and return it.

        Raises Invalid as `planned` does, and Conflict if the queue is full.
        """
        analysis = cls.planned(**wanted)
        with transaction.atomic():
            analysis.request(Tag.RANK_ANALYSIS_REQUESTED, by=wanted["by"], after=analysis.asked_for())
        return analysis

    @classmethod
    def planned(
        cls,
        *,
        project: Project,
        base_model: BaseModel,
        dataset: Dataset,
        by: Actor,
        rank_min: int | None = None,
        settings: dict[str, Any] | None = None,
        **fields: Any,
    ) -> RankAnalysis:
        """Return an unsaved analysis; a missing `rank_min` is the preset's, and the project's clusters cap the ranks.

        `settings` override parts of the preset; `fields` are the other fields of the analysis, such as `budget` ({kind:
        number}) and `preset`. Raises Invalid that names the field for a dataset or setting that cannot be used, and if
        no ranks within the bounds meet the budget.
        """
        analysis = cls(project=project, base_model=base_model, dataset=dataset, created_by=by.user, **fields)
        analysis.require_of_project("dataset", dataset)
        dataset.require_answers()
        kinds = base_model.linear_shapes()
        analysis.settings = analysis_settings.checked(analysis.preset, rank_min, settings or {}, kinds)
        analysis.rank_min = analysis_settings.resolved(analysis.preset, rank_min, analysis.settings).rank_min
        analysis.rank_max = min([analysis.rank_max, *served_ranks(project, base_model)])
        analysis.check_budget()
        return analysis

    def asked_for(self) -> dict[str, Any]:
        """Return what was requested, as the audit trail records it."""
        return {"budget": self.budget, "preset": self.preset, "settings": self.settings}

    @property
    def parts(self) -> dict[str, Any]:
        """Return every setting in effect by name: the preset's, with the chosen overrides."""
        return analysis_settings.effective(self.preset, self.rank_min, self.settings)

    @property
    def bounds(self) -> Bounds:
        """Return the limits of the ranks: least, greatest, and the step between ranks."""
        return Bounds(self.rank_min, self.rank_max, self.quantum)

    def modules(self) -> dict[str, tuple[int, int]]:
        """Return the shapes (out, in) of the modules to analyse, by full name."""
        shapes = self.base_model.linear_shapes()
        wanted = self.settings.get("target_modules", list(shapes))
        return {
            f"model.layers.{layer}.{'self_attn' if is_attention(kind) else 'mlp'}.{kind}": shapes[kind]
            for layer in range(self.base_model.layers)
            for kind in shapes
            if kind in wanted
        }

    def check_budget(self) -> None:
        """Check before the analysis that ranks within the bounds can meet the budget. Raises Invalid."""
        ((kind, value),) = self.budget.items()
        chosen = analysis_settings.resolved(self.preset, self.rank_min, self.settings)
        modules = self.modules()
        try:
            allocation.check_budget(kind, value, list(modules), list(modules.values()), self.bounds, chosen)
        except allocation.AllocationError as error:
            raise Invalid(str(error), field=error.field, code=f"bad_{error.field}") from None

    def child_arguments(self, folder: Path) -> list[str]:
        """Fetch the dataset's files and return the child's arguments after `python -m`.

        Raises Invalid if the dataset is not ready, and ArtifactError if its files are missing or damaged.
        """
        ((kind, value),) = self.budget.items()
        data = self.dataset.folder()
        needs_reference = analysis_settings.resolved(self.preset, self.rank_min, self.settings).needs_reference
        return [
            "training.tars",
            "--model",
            str(self.base_model.folder),
            "--data",
            str(data / "train.jsonl"),
            *(["--reference", str(REFERENCE)] if needs_reference else []),
            "--budget",
            f"{BUDGET_WORDS[kind]}:{value}",
            "--preset",
            self.preset,
            *analysis_settings.arguments(self.settings),
            "--rank-min",
            str(self.rank_min),
            "--rank-max",
            str(self.rank_max),
            "--quantum",
            str(self.quantum),
            "--samples",
            str(self.samples),
            "--max-length",
            str(self.max_length),
            "--threads",
            str(settings.TORCH_THREADS),
            "--events",
            str(folder / "events.jsonl"),
            "--out",
            str(folder / "plan.json"),
        ]

    def succeeded(self, folder: Path) -> None:
        """Store the start values, save the plan with their digest, end the job as succeeded, and record that.

        Raises StaleAttempt if the lease has passed to a later attempt.
        """
        plan = json.loads((folder / "plan.json").read_bytes())
        plan["start_values"] = stored_start_values(folder)
        with transaction.atomic():
            self.write(plan=plan)
            self.end(JobStatus.SUCCEEDED)
            evidence = {name: plan[name] for name in ("verdict", "parameters", "start_values")}
            self.record_end(evidence=evidence)

    def reallocate(self, budget: dict[str, int]) -> dict[str, Any]:
        """Return the plan for another budget, {kind: number}, from the stored signals; nothing is saved.

        The kind is `uniform_rank`, `parameters` or `bytes`. Raises Invalid before the analysis has a plan, and for a
        budget that cannot be met.
        """
        ((kind, value),) = budget.items()
        try:
            plan = allocation.reallocate(self.require_plan(), kind, value)
        except allocation.AllocationError as error:
            raise Invalid(str(error), field="budget", code="bad_budget") from None
        if plan.get("race"):
            return plan
        words = verdict.of(plan["modules"], plan["stability"], plan["sequences"], Settings(**plan["settings"]))
        return {**plan, "verdict": words[0], "verdict_text": words[1]}

    def require_plan(self) -> dict[str, Any]:
        """Return the plan. Raises Invalid before the analysis has one."""
        if not self.plan:
            raise Invalid(f"The analysis is {self.status}: it has no scores yet.", code="no_scores")
        plan: dict[str, Any] = self.plan
        return plan

    def uniform_range(self) -> tuple[int, int]:
        """Return the least and the greatest uniform rank whose number of parameters the plan's bounds can meet.

        Raises Invalid before the analysis has a plan.
        """
        plan = self.require_plan()
        modules = plan["modules"]
        names, shapes = [module["name"] for module in modules], [module["shape"] for module in modules]
        each = sum(allocation.cost(shape) for shape in shapes)
        open_to = [is_open(name, plan["settings"]["kinds"]) for name in names]
        lows, highs = self.bounds.of(shapes, open_to=open_to)
        costs = [allocation.cost(shape) * self.quantum for shape in shapes]
        least = max(1, -(-int(lows @ costs) // each))
        return least, max(least, int(highs @ costs) // each)

    def start_values_file(self) -> Path:
        """Return the path of a verified local copy of the plan's start values for A; call it only if the plan has some.

        Raises Invalid before the analysis has a plan, and ArtifactError if the store has lost the file.
        """
        digest = self.require_plan()["start_values"]
        return store().fetch_dir(digest, settings.WORK_DIR / "start-values" / digest) / START_VALUES


def served_ranks(project: Project, base_model: BaseModel) -> list[int]:
    """Return the lowest max_lora_rank of the project's clusters of the base model, as a list of one.

    Empty without a cluster.
    """
    least = project.clusters.filter(base_model=base_model).aggregate(Min("max_lora_rank"))["max_lora_rank__min"]
    return [] if least is None else [least]


def stored_start_values(folder: Path) -> str | None:
    """Put the start values in the job's folder into the store and return their digest; None if there are none.

    The job's output folder is replaced by one that holds only them.
    """
    if not (folder / START_VALUES).exists():
        return None
    alone = folder / "output"
    shutil.rmtree(alone, ignore_errors=True)
    alone.mkdir()
    shutil.copy(folder / START_VALUES, alone)
    return store().put_dir(alone)
