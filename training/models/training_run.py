"""Training runs, which turn a dataset into an adapter version."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import models, transaction
from django.db.models import Q
from django.utils.timezone import now

from adapterhub.audit.models import AuditEvent
from adapterhub.audit.tags import Tag
from adapterhub.core.actor import Actor
from adapterhub.core.errors import Invalid, InvalidTransition
from adapterhub.jobs.models import JobStatus
from adapterhub.workspace import store
from registry.models import Adapter, AdapterVersion, BaseModel
from training.models.checkpoint_answer import CheckpointAnswer, Prompts, checked
from training.models.chosen_plan import check_analysis, check_budget, takes_start_values
from training.models.dataset import Dataset
from training.models.hyperparameters import OUTER, TABLE, require_of_method, with_defaults
from training.models.job import GpuJob
from training.models.mixture import Mixed, MixtureMixin, checked_mixture, require_validation
from training.models.preference_methods import LEARNS_FROM, require_settings
from training.models.rank_analysis import RankAnalysis
from training.models.retention import RetentionMixin
from training.models.run_log import RunLog
from training.recipes import launch_command

# Methods that train a LoRA of fixed ranks.
SMALL = ("lora", "qlora", "dora", *LEARNS_FROM)


class TrainingRun(MixtureMixin, RetentionMixin, GpuJob):
    """One training of one adapter; its configuration is frozen when it is requested."""

    class Method(models.TextChoices):
        LORA = "lora", "LoRA"
        QLORA = "qlora", "QLoRA (4-bit base)"
        DORA = "dora", "DoRA"
        ADALORA = "adalora", "AdaLoRA"
        GALORE = "galore", "GaLore (all weights)"
        FULL = "full", "Full fine-tuning"
        DPO = "dpo", "DPO (preference pairs)"
        KTO = "kto", "KTO (good and bad answers)"
        ORPO = "orpo", "ORPO (preference pairs; experimental in TRL)"

    subject = "training_run"

    adapter = models.ForeignKey(Adapter, models.PROTECT, related_name="runs")
    method = models.CharField(max_length=20, choices=Method.choices, default=Method.LORA)
    rank_analysis = models.ForeignKey(RankAnalysis, models.PROTECT, null=True, blank=True, related_name="runs")
    budget = models.JSONField(null=True, blank=True, help_text="Instead of the analysis' own.")
    takes_start_values = models.BooleanField(default=False)
    validation_dataset = models.ForeignKey(
        Dataset, models.PROTECT, null=True, blank=True, related_name="+", help_text="Else the dataset's held-out rows."
    )
    hyperparameters = models.JSONField()
    prompts = models.JSONField(default=dict, help_text="By name; each checkpoint answers them.")
    version = models.OneToOneField(AdapterVersion, models.PROTECT, null=True, editable=False, related_name="run")
    loss_before = models.FloatField(null=True, editable=False)
    loss_after = models.FloatField(null=True, editable=False)
    mirrored_at = models.DateTimeField(null=True, editable=False, help_text="When MLflow had all of it.")

    tags = {
        JobStatus.SUCCEEDED: Tag.TRAINING_RUN_SUCCEEDED,
        JobStatus.FAILED: Tag.TRAINING_RUN_FAILED,
        JobStatus.STOPPING: Tag.TRAINING_RUN_CANCEL_ASKED,
        JobStatus.CANCELLED: Tag.TRAINING_RUN_CANCELLED,
    }

    class Meta(GpuJob.Meta):
        constraints = [
            *GpuJob.Meta.constraints,
            models.CheckConstraint(
                condition=~Q(status="succeeded") | Q(version__isnull=False), name="a_succeeded_run_has_a_version"
            ),
        ]

    def __str__(self) -> str:
        return f"run {str(self.pk)[:8]} of {self.adapter}"

    @classmethod
    def planned(
        cls,
        *,
        adapter: Adapter,
        dataset: Dataset,
        by: Actor,
        rank_analysis: RankAnalysis | None = None,
        budget: dict[str, int] | None = None,
        start_values: bool | None = None,
        hyperparameters: dict[str, Any] | None = None,
        method: str = Method.LORA,
        priority: int = 0,
        prompts: Prompts | None = None,
        validation_dataset: Dataset | None = None,
        mixture: Sequence[Mixed] = (),
    ) -> TrainingRun:
        """Return an unsaved run, for a preflight or to be queued. Raises Invalid that names the field.

        A rank analysis gives its ranks, for another `budget` ({kind: number}) if given, and its start values unless
        `start_values` is False; None takes them if it has any. Hyperparameters that are not given get the method's
        defaults.
        """
        check_analysis(rank_analysis, adapter.base_model)
        check_budget(rank_analysis, budget)
        run = cls(
            project=adapter.project,
            adapter=adapter,
            base_model=adapter.base_model,
            dataset=dataset,
            method=method,
            rank_analysis=rank_analysis,
            budget=budget,
            takes_start_values=takes_start_values(start_values, rank_analysis),
            hyperparameters=with_defaults(within_model(hyperparameters or {}, adapter.base_model), method),
            priority=priority,
            prompts=prompts or {},
            validation_dataset=validation_dataset,
            mixture=checked_mixture(mixture, dataset, method),
            created_by=by.user,
        )
        checked(run.prompts, sharded=bool(run.hyperparameters.get("sharded")))
        check_init(run)
        check_rslora(run, is_planned=rank_analysis is not None)
        check_curve(run)
        require_settings(run.method, run.hyperparameters)
        require_of_method(method, run.hyperparameters)
        run.require_of_project("dataset", dataset)
        dataset.require_for(run.method)
        if validation_dataset:
            run.require_of_project("validation_dataset", validation_dataset)
            for part in run.parts():
                require_validation(validation_dataset, part.dataset, run.method)
        run.require_of_project("rank_analysis", rank_analysis)
        return run

    def queue(self, *, by: Actor) -> None:
        """Save and queue the planned run, and record that. `training.runs.launch` checks it first.

        Raises Conflict if the queue is full, and Invalid if the dataset is not ready.
        """
        with transaction.atomic():
            self.request(Tag.TRAINING_RUN_REQUESTED, by=by, after=self.asked_for())

    def asked_for(self) -> dict[str, Any]:
        """Return the requested settings for the audit event.

        They are the hyperparameters, rank analysis, budget, prompts and datasets.
        """
        return {
            "hyperparameters": self.hyperparameters,
            "rank_analysis": str(self.rank_analysis_id) if self.rank_analysis_id else None,
            "budget": self.budget,
            "start_values": self.takes_start_values,
            **({"prompts": sorted(self.prompts)} if self.prompts else {}),
            **({"validation_dataset": self.validation_dataset.digest} if self.validation_dataset else {}),
            **({"mixture": self.mixed_digests()} if self.mixture else {}),
        }

    def resume(self, *, by: Actor) -> None:
        """Queue a failed or cancelled run again, from its last checkpoint, and record that.

        Raises InvalidTransition for a run in another state.
        """
        with transaction.atomic():
            run = self.lock()
            if run.status not in (JobStatus.FAILED, JobStatus.CANCELLED):
                raise InvalidTransition(f"The run is {run.status}: only a failed or cancelled run can be resumed.")
            run.status, run.finished_at, run.reason, run.message = JobStatus.QUEUED, None, "", ""
            run.mirrored_at = None
            run.max_attempts = run.attempt + settings.JOB_ATTEMPTS
            run.save()
            AuditEvent.record(Tag.TRAINING_RUN_RESUMED, run, by=by, project=run.project)
            transaction.on_commit(run.wake_worker, robust=True)
        self.refresh_from_db()

    def child_arguments(self, folder: Path) -> list[str]:
        """Fetch the data, write run.json into the folder and return the recipe's arguments after `python -m`.

        With several devices these start torch's launcher. Raises Invalid for a dataset that is not ready or an analysis
        without a plan, and ArtifactError for files that are missing or damaged.
        """
        recipe = folder / "run.json"
        recipe.write_text(json.dumps(self.recipe(folder), indent=1))
        return launch_command.command(f"training.recipes.{self.method}", str(recipe), self.devices)

    @property
    def devices(self) -> int:
        """Return the number of devices that the run takes."""
        devices: int = self.hyperparameters.get("devices", 1)
        return devices

    def recipe(self, folder: Path) -> dict[str, Any]:
        """Return the content of the run file that the recipe reads; the files that it names are fetched."""
        data = self.dataset.folder()
        return {
            "base_model": str(self.base_model.folder),
            "base_model_name": self.base_model.slug,
            "train": str(data / "train.jsonl"),
            "eval": str(self.held_out_file(folder)),
            "data_name": str(self.dataset),
            "mixture": self.mixed_files(),
            "output": str(folder / "output"),
            "events": str(folder / "events.jsonl"),
            **self.rank_plan(),
            "init": self.start_values(),
            "prompts": self.prompts,
            "devices": self.devices,
            "sharding": "fsdp" if self.hyperparameters.get("sharded") else "ddp",
            "hyperparameters": {
                **{name: value for name, value in self.hyperparameters.items() if name not in OUTER},
                "threads": settings.TORCH_THREADS,
            },
        }

    def held_out_file(self, folder: Path) -> Path:
        """Return the file of held-out rows; all rows of a validation dataset are written to a file in the folder."""
        if self.validation_dataset is None:
            rows: Path = self.dataset.folder() / "eval.jsonl"
            return rows
        whole = folder / "validation.jsonl"
        parts = [self.validation_dataset.folder() / name for name in ("train.jsonl", "eval.jsonl")]
        whole.write_bytes(b"".join(part.read_bytes() for part in parts))
        return whole

    def rank_plan(self) -> dict[str, Any]:
        """Return the rank fields of a LoRA configuration: those of the analysis' plan, or one rank everywhere.

        Raises Invalid if the analysis has no plan.
        """
        if plan := self.plan():
            names = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "target_modules")
            return {name: plan[name] for name in names if name in plan}
        rank = self.hyperparameters["rank"]
        # rsLoRA (arXiv 2312.03732) scales by alpha / sqrt(r): as a larger plain alpha, every engine scales it the same.
        stabilised = rank**0.5 if self.hyperparameters.get("rslora") else 1
        return {
            "r": rank,
            "lora_alpha": rank * self.hyperparameters["scale"] * stabilised,
            "rank_pattern": {},
            "alpha_pattern": {},
            "target_modules": sorted(self.base_model.linear_shapes()),
        }

    def plan(self) -> dict[str, Any] | None:
        """Return the analysis' plan for the run's budget; None without an analysis.

        Raises Invalid if the analysis has no plan, or the budget cannot be met.
        """
        if self.rank_analysis is None:
            return None
        return self.rank_analysis.reallocate(self.budget) if self.budget else self.rank_analysis.require_plan()

    def planned_parameters(self) -> int:
        """Return the number of parameters of the ranks that an analysis plans for the run; 0 without an analysis.

        Raises Invalid as `plan` does.
        """
        plan = self.plan()
        return int(plan["parameters"]) if plan else 0

    def effective_hyperparameters(self) -> dict[str, Any]:
        """Return the hyperparameters that the run uses, by name.

        `rank` is left out if an analysis plans the ranks, and `init` if start values take its place.
        """
        unused = {"rank"} if self.rank_analysis_id else set()
        unused |= {"init"} if self.takes_start_values else set()
        return {name: value for name, value in self.hyperparameters.items() if name not in unused}

    def start_values(self) -> str:
        """Return the path of the analysis' start values for A if the run takes them, else the hyperparameter `init`.

        It is "random" if that is not set.
        """
        if self.takes_start_values and self.rank_analysis:
            return str(self.rank_analysis.start_values_file())
        return str(self.hyperparameters.get("init", "random"))

    def note(self, event: dict[str, Any]) -> None:
        """Store the progress, metrics, answers or loss that an event of the child reports.

        Raises StaleAttempt if the lease has passed to a later attempt.
        """
        super().note(event)
        if event["kind"] == "metrics":
            with transaction.atomic():
                self.write(progress=self.progress_after(event))
                values = {name: value for name, value in event.items() if name not in ("kind", "step")}
                RunMetric.objects.update_or_create(run=self, step=event["step"], defaults={"values": values})
        elif event["kind"] == "answers":
            with transaction.atomic():
                self.write(attempt=self.attempt)
                CheckpointAnswer.keep(self, event["step"], event["answers"])
        elif event["kind"] == "evaluation":
            self.write(**{f"loss_{event['when']}": event["loss"]})

    @property
    def log_file(self) -> Path:
        """Return the path of the child's log."""
        return self.folder / "log.txt"

    def log_start(self) -> int:
        """Return the number of log bytes stored; 0 if this host's log file is missing or shorter, as on a new host."""
        stored_bytes = RunLog.end_of(self)
        return stored_bytes if self.log_file.is_file() and self.log_file.stat().st_size >= stored_bytes else 0

    def keep_log(self, start: int) -> int:
        """Store what the log file has gained since byte `start`; return the byte up to which it is stored.

        Raises StaleAttempt if the lease has passed to a later attempt.
        """
        if not self.log_file.is_file() or self.log_file.stat().st_size <= start:
            return start
        with transaction.atomic():
            self.write(attempt=self.attempt)
            return RunLog.keep(self, self.log_file, start)

    def progress_after(self, event: dict[str, Any]) -> dict[str, Any]:
        """Return the stored progress with the step and loss of a metrics event in it."""
        progress = type(self).objects.values_list("progress", flat=True).get(pk=self.pk)
        return {**progress, "step": event["step"], "loss": event.get("loss")}

    def succeeded(self, folder: Path) -> None:
        """Publish the version and end the run, with the audit events, in one transaction.

        A run that is to stop is cancelled instead. Raises StaleAttempt if the lease has passed to a later attempt, so
        that a run never has two versions.
        """
        result = json.loads((folder / "output" / "result.json").read_bytes())
        if (folder / "output" / "model").is_dir():
            result["checkpoint"] = store().put_dir(folder / "output" / "model")
        with transaction.atomic():
            if self.heartbeat() == JobStatus.STOPPING:
                # Cancelled while it was saving: the checkpoint is kept, and a resume publishes it.
                self.cancelled()
                return
            version = AdapterVersion.publish(
                self.adapter,
                folder / "output" / "adapter",
                method=self.method,
                by=Actor("system:gpu-worker", "system", user=self.created_by),
                metrics=result,
                lineage=self.lineage(),
            )
            self.write(version=version, loss_before=result["loss_before"], loss_after=result["loss_after"])
            self.end(JobStatus.SUCCEEDED)
            self.record_end(evidence=result)

    def lineage(self) -> dict[str, Any]:
        """Return the record of the new version's origin: this run, its settings, its data and its base model."""
        plan = self.rank_analysis.require_plan() if self.rank_analysis and self.takes_start_values else None
        return {
            "run": str(self.pk),
            "dataset": self.dataset.digest,
            "base_model": self.base_model.digest,
            **self.asked_for(),
            "start_values": plan["start_values"] if plan else None,
            "requested_at": self.created_at.isoformat(),
            "published_at": now().isoformat(),
        }


class RunMetric(models.Model):
    """One logged step of a run, with its metrics by name, such as loss, learning rate and tokens per second."""

    run = models.ForeignKey(TrainingRun, models.PROTECT, related_name="metrics")
    step = models.PositiveIntegerField()
    values = models.JSONField()

    class Meta:
        ordering = ["step"]
        constraints = [models.UniqueConstraint(fields=["run", "step"], name="one_metric_per_step")]

    def __str__(self) -> str:
        return f"step {self.step}"


def within_model(given: dict[str, Any], base_model: BaseModel) -> dict[str, Any]:
    """Return the hyperparameters, with the base model's context length as max_length if the default exceeds it.

    A max_length that is given stays.
    """
    limit = base_model.config.get("max_position_embeddings")
    default = TABLE["max_length"].default
    if "max_length" in given or not isinstance(limit, int) or limit >= int(default):
        return given
    return {**given, "max_length": limit}


def check_init(run: TrainingRun) -> None:
    """Check that `init` is random unless the method is lora or learns from preferences. Raises Invalid."""
    init = run.hyperparameters["init"]
    if init != "random" and run.method not in (TrainingRun.Method.LORA, *LEARNS_FROM):
        message = f"init = {init} is only for lora, {', '.join(LEARNS_FROM)}: leave it at random."
        raise Invalid(message, field="hyperparameters.init", code="bad_init")


def check_curve(run: TrainingRun) -> None:
    """Check that a run with `patience` measures held-out losses on the way. Raises Invalid."""
    chosen = run.hyperparameters
    if chosen["patience"] and not chosen["eval_steps"]:
        message = "patience counts held-out losses: set eval_steps, too."
        raise Invalid(message, field="hyperparameters.eval_steps", code="bad_curve")


def check_rslora(run: TrainingRun, *, is_planned: bool) -> None:
    """Check that rsLoRA is used only with one rank everywhere and a method that supports it. Raises Invalid."""
    if run.hyperparameters["rslora"] and (is_planned or run.method not in SMALL):
        message = f"rslora is only for {', '.join(SMALL)}, with one rank everywhere: set it to 0, or drop the analysis."
        raise Invalid(message, field="hyperparameters.rslora", code="bad_rslora")
