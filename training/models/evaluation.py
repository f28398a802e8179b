"""Evaluations: a version measured against its base model and another version, by a child process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import models, transaction
from django.db.models import Q

from adapterhub.audit.tags import Tag
from adapterhub.core.actor import Actor
from adapterhub.core.errors import Invalid
from adapterhub.core.regex_check import pattern_fault
from adapterhub.jobs.models import JobStatus
from registry.models import AdapterVersion, BaseModel, Cluster, VersionEvaluation
from registry.models.adapter import VersionStatus
from registry.models.approved_versions import require_nameable
from training.models import lm_eval_task
from training.models.dataset import Dataset
from training.models.job import GpuJob

GENERIC = Path(__file__).parent.parent / "reference.txt"
MAX_PROMPTS = 50
MAX_PROMPT = 8000
MAX_PATTERN = 200
ENDED = (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED)


class Evaluation(GpuJob):
    """A job that measures a version on a dataset's held-out rows, or has it answer prompts, or both.

    With `task` it runs a task of lm-eval on the served version instead.
    """

    # Django lets a model override a field of its abstract base.
    dataset = models.ForeignKey(  # type: ignore[assignment]
        Dataset, models.PROTECT, null=True, blank=True, related_name="+"
    )
    version = models.ForeignKey(AdapterVersion, models.PROTECT, related_name="evaluation_jobs")
    against = models.ForeignKey(AdapterVersion, models.PROTECT, null=True, blank=True, related_name="+")
    prompts = models.JSONField(default=list)
    pattern = models.CharField(max_length=MAX_PATTERN, blank=True, default="")
    task = models.CharField(max_length=100, blank=True, default="", db_default="", help_text="A task of lm-eval.")
    variant = models.ForeignKey(BaseModel, models.PROTECT, null=True, blank=True, related_name="+")
    result = models.OneToOneField(VersionEvaluation, models.PROTECT, null=True, editable=False, related_name="job")

    tags = {
        JobStatus.SUCCEEDED: Tag.EVALUATION_SUCCEEDED,
        JobStatus.FAILED: Tag.EVALUATION_FAILED,
        JobStatus.STOPPING: Tag.EVALUATION_CANCEL_ASKED,
        JobStatus.CANCELLED: Tag.EVALUATION_CANCELLED,
    }

    class Meta(GpuJob.Meta):
        constraints = [
            *GpuJob.Meta.constraints,
            models.CheckConstraint(
                condition=~Q(status="succeeded") | Q(result__isnull=False),
                name="a_succeeded_evaluation_has_a_result",
            ),
        ]

    def __str__(self) -> str:
        return f"evaluation of {self.version}"

    @classmethod
    def launch(
        cls,
        version: AdapterVersion,
        *,
        by: Actor,
        dataset: Dataset | None = None,
        prompts: list[str] | None = None,
        against: AdapterVersion | None = None,
        pattern: str = "",
        task: str = "",
        variant: BaseModel | None = None,
    ) -> Evaluation:
        """Queue an evaluation, record that, and return it.

        `against` is another version to compare with. `pattern` is a regular expression that scores answers by whether
        it matches, "" for none. Without `task` a dataset or prompts must be given; a task (the name of one of lm-eval)
        is combined with nothing else. With `variant`, a declared variant of the base model, the loss that it costs on
        the dataset is measured, too. Raises Invalid that names the field for versions, data, prompts, a pattern or a
        task that cannot be used, and Conflict if the queue is full.
        """
        require_measurable(version, against)
        require_variant(version, variant, dataset)
        if task:
            require_alone(dataset=dataset, prompts=prompts, against=against, pattern=pattern, variant=variant)
            lm_eval_task.require_task(task)
            require_nameable([version], "version")
            require_cluster(version)
        elif dataset is None and not prompts:
            raise Invalid("Name a dataset, prompts, or a task.", field="dataset", code="nothing_to_measure")
        if fault := pattern_fault(pattern):
            raise Invalid(f"pattern: {fault}", field="pattern", code="bad_pattern")
        job = cls(
            project=version.project,
            base_model=version.adapter.base_model,
            dataset=dataset,
            version=version,
            against=against,
            prompts=checked_prompts(prompts or []),
            pattern=pattern,
            task=task,
            variant=variant,
            created_by=by.user,
        )
        job.require_of_project("dataset", dataset)
        if dataset:
            dataset.require_answers()
        inputs = {"version": version.served_name, "against": against.served_name if against else None}
        with transaction.atomic():
            wishes = {"prompts": len(job.prompts)} | ({"task": task} if task else {})
            wishes |= {"variant": variant.slug} if variant else {}
            job.request(Tag.EVALUATION_REQUESTED, by=by, after=inputs | wishes)
        return job

    def child_arguments(self, folder: Path) -> list[str]:
        """Write the child's file into the folder and return the child's arguments after `python -m`.

        Unless it runs a task, which asks the router, the versions' files are fetched into the folder, too. Raises
        ArtifactError if they are missing or damaged, and Invalid if the dataset is not ready.
        """
        if self.task:
            # How an adapter from elsewhere was trained nobody knows: it is asked without a template.
            is_chat = bool(self.base_model.template_digest) and hasattr(self.version, "run") and self.is_chat()
            file = lm_eval_task.write_file(self, self.version, self.task, folder, is_chat=is_chat)
            return ["training.recipes.lm_eval_task", str(file)]
        adapters = {"version": str(self.version.fetch(folder / "version"))}
        if self.against:
            adapters["against"] = str(self.against.fetch(folder / "against"))
        record = {
            "base_model": str(self.base_model.folder),
            "adapters": adapters,
            "data": str(self.dataset.folder() / "eval.jsonl") if self.dataset else None,
            "generic": str(GENERIC),
            "prompts": self.prompts,
            "pattern": self.pattern or None,
            "variant": str(self.variant.folder) if self.variant else None,
            "chat": self.is_chat(),
            "as_chat": self.reads_as_chat(),
            "events": str(folder / "events.jsonl"),
            "output": str(folder / "output"),
            "threads": settings.TORCH_THREADS,
        }
        (folder / "compare.json").write_text(json.dumps(record))
        return ["training.recipes.compare", str(folder / "compare.json")]

    def is_chat(self) -> bool:
        """Return True if prompts are sent in the chat template.

        That is always so, unless a run here trained the version on rows without a chat.
        """
        run = getattr(self.version, "run", None)
        return run is None or self.reads_as_chat() or run.dataset.is_conversation()

    def reads_as_chat(self) -> bool:
        """Return True if the version was trained on prompts and completions that were read as chats."""
        run = getattr(self.version, "run", None)
        return bool(run and run.hyperparameters.get("as_chat"))

    def succeeded(self, folder: Path) -> None:
        """Store the measurements and end the job, with the audit event, in one transaction.

        Raises StaleAttempt if the lease has passed to a later attempt; then nothing is stored.
        """
        metrics = json.loads((folder / "output" / "result.json").read_bytes())
        if self.variant:
            metrics["variant"] |= {"name": self.variant.slug, "digest": self.variant.digest}
        with transaction.atomic():
            self.heartbeat()
            result = VersionEvaluation.objects.create(
                version=self.version,
                against=self.against,
                variant=self.variant,
                base_digest=self.base_model.digest,
                dataset_digest=self.dataset.digest if self.dataset else "",
                metrics=metrics,
            )
            self.write(result=result)
            self.end(JobStatus.SUCCEEDED)
            measured = {name: metrics[name] for name in ("task", "scores") if name in metrics}
            measured |= {} if self.task else {"differences": metrics.get("differences")}
            measured |= {"variant": metrics["variant"]} if self.variant else {}
            self.record_end(evidence={**measured, "version": self.version.served_name})

    def record_end(self, **facts: Any) -> None:
        """Record the audit event for the job's present status; `facts` are the arguments of `GpuJob.record_end`.

        Once a job with a task has ended, the token with which it asked the router is revoked, too.
        """
        super().record_end(**facts)
        if self.task and self.status in ENDED:
            lm_eval_task.revoke_tokens(self)


def require_alone(**others: Any) -> None:
    """Raise Invalid if a field is given that cannot be combined with a task of lm-eval.

    `others` maps the names of these fields to their values; None, "" and an empty list are not given.
    """
    for field, given in others.items():
        if given:
            message = f"A task is an evaluation of its own: leave {field} out."
            raise Invalid(message, field=field, code="not_with_task")


def require_cluster(version: AdapterVersion) -> None:
    """Raise Invalid if no cluster serves the version's base model to its project."""
    base_model = version.adapter.base_model
    if not Cluster.objects.serving(version.project).filter(base_model=base_model).exists():
        message = f"No cluster serves {base_model} to {version.project}: a task is asked of a served version."
        raise Invalid(message, field="version", code="not_served")


def require_measurable(version: AdapterVersion, against: AdapterVersion | None) -> None:
    """Check that the versions are ready, differ, and have the same base model and project; `against` may be None.

    Raises Invalid.
    """
    for field, one in (("version", version), ("against", against)):
        if one and one.status != VersionStatus.READY:
            raise Invalid(f"{one} is {one.status}, not ready.", field=field, code="version_not_ready")
    if against and (against.base_digest != version.base_digest or against.project != version.project):
        raise Invalid(f"{against} has another base model than {version}.", field="against", code="wrong_base")
    if against and against.pk == version.pk:
        raise Invalid(f"{version} cannot be compared with itself.", field="against", code="same_version")


def require_variant(version: AdapterVersion, variant: BaseModel | None, dataset: Dataset | None) -> None:
    """Raise Invalid unless `variant` is a declared variant of the version's base model and a dataset is given.

    A `variant` of None passes.
    """
    if variant is None:
        return
    base = variant.variant_of
    if base is None or base.digest != version.base_digest:
        message = f"{variant} is not declared a variant of {version.adapter.base_model}."
        raise Invalid(message, field="variant", code="not_a_variant")
    if dataset is None:
        raise Invalid("Name a dataset: a variant's loss is measured on its rows.", field="dataset", code="no_dataset")


def checked_prompts(prompts: list[str]) -> list[str]:
    """Return the prompts. Raises Invalid for too many, and for blank or too long ones."""
    if len(prompts) > MAX_PROMPTS or not all(prompt.strip() and len(prompt) <= MAX_PROMPT for prompt in prompts):
        message = f"Give at most {MAX_PROMPTS} prompts of 1 to {MAX_PROMPT} characters."
        raise Invalid(message, field="prompts", code="bad_prompts")
    return prompts
