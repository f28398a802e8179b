"""Abstract model of jobs on a GPU, such as analyses and training runs: lease, project, audit event at the end."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any, ClassVar, cast

from django.apps import apps
from django.conf import settings
from django.db import models, transaction

from adapterhub import tracing
from adapterhub.accounts.models import Project, User
from adapterhub.audit.models import AuditEvent
from adapterhub.audit.tags import Tag
from adapterhub.core.actor import Actor, system
from adapterhub.core.errors import Conflict, Invalid
from adapterhub.jobs.models import LEASED, JobStatus, LeasedJob
from registry.models import BaseModel
from training.domain_signals import job_queued
from training.models.dataset import Dataset

WORKER = system("gpu-worker")


class GpuJob(LeasedJob):
    """An abstract leased job that belongs to a project and uses a dataset and a base model.

    `tags` has the audit tag of each status.
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    project = models.ForeignKey(Project, models.PROTECT, related_name="+")
    base_model = models.ForeignKey(BaseModel, models.PROTECT, related_name="+")
    dataset = models.ForeignKey(Dataset, models.PROTECT, related_name="+")
    created_by = models.ForeignKey(User, models.PROTECT, null=True, related_name="+")
    traceparent = models.CharField(max_length=55, blank=True, editable=False, help_text="Of the request that asked.")
    priority = models.SmallIntegerField(default=0, help_text="The highest is begun first; equal ones as they came.")

    tags: ClassVar[dict[JobStatus, Tag]]

    class Meta(LeasedJob.Meta):
        abstract = True
        ordering = ["-created_at"]

    def require_of_project(self, field: str, record: models.Model | None) -> None:
        """Check that a record named by the request's `field` belongs to the job's project; None passes.

        Raises Invalid.
        """
        if record is not None and cast(Any, record).project_id != self.project_id:
            raise Invalid(f"There is no such {field} in {self.project}.", field=field, code=f"unknown_{field}")

    @property
    def folder(self) -> Path:
        """The job's workspace on this host; its checkpoints remain after an attempt."""
        return settings.WORK_DIR / str(self.pk)

    def wake_worker(self) -> None:
        """Send the signal that the job is queued; call it outside of a transaction that may be rolled back."""
        kind = self._meta.model_name
        job_queued.send(sender=None, kind=kind, job=str(self.pk), traceparent=self.traceparent)

    def request(self, tag: Tag, *, by: Actor, after: dict[str, Any]) -> None:
        """Save the new job, record that, and wake a worker after the commit.

        The audit event has this `tag`, and `after` as its details. Raises Conflict if the project's queue is full, and
        Invalid if the dataset is not ready.
        """
        require_room(self.project)
        if self.dataset:
            self.dataset.require_ready()
        self.traceparent = tracing.here()
        self.save(force_insert=True)
        AuditEvent.record(tag, self, by=by, project=self.project, after=after)
        transaction.on_commit(self.wake_worker, robust=True)

    def cancel(self, *, by: Actor, reason: str = "") -> None:
        """Cancel a queued job at once; have a running one save a checkpoint and stop. Either is recorded.

        Nothing happens to a job that is stopping or cancelled already. Raises InvalidTransition for one that has
        succeeded or failed.
        """
        with transaction.atomic():
            job = self.lock()
            was = job.status
            job.stop_or_cancel()
            if job.status != was:
                job.record_end(by=by, reason=reason)
        self.refresh_from_db()

    def failed(self, reason: str, message: str) -> None:
        """End the job as failed, with the audit event.

        `reason` is a code, such as `bad_input`, and `message` a sentence. Raises StaleAttempt if the lease has passed
        to a later attempt.
        """
        with transaction.atomic():
            self.end(JobStatus.FAILED, reason=reason, message=message)
            self.record_end()

    def cancelled(self) -> None:
        """End the job as cancelled, with the audit event.

        Raises StaleAttempt if the lease has passed to a later attempt.
        """
        with transaction.atomic():
            self.end(JobStatus.CANCELLED)
            self.record_end()

    def record_end(self, *, by: Actor = WORKER, evidence: dict[str, Any] | None = None, reason: str = "") -> None:
        """Record the audit event for the job's present status, at its end or after a request to stop it.

        `evidence` are the results that the event states, None for none. A `reason` of "" stands for the job's message.
        """
        AuditEvent.record(
            self.tags[JobStatus(self.status)],
            self,
            by=by,
            project=self.project,
            after={"status": self.status, "attempt": self.attempt},
            reason=reason or self.message,
            evidence=evidence,
        )

    def log_start(self) -> int:
        """The byte of the log file from which `keep_log` continues; 0 for jobs whose log is not stored."""
        return 0

    def keep_log(self, start: int) -> int:
        """Store what the child has written to its log since byte `start`; return the byte up to which it is stored.

        This class stores no log and returns `start`.
        """
        return start

    def note(self, event: dict[str, Any]) -> None:
        """Store the progress that an event of the child reports; other events are ignored.

        Raises StaleAttempt if the lease has passed to a later attempt.
        """
        if event["kind"] == "progress":
            self.write(progress={name: event.get(name) for name in ("step", "total", "eta_s")})


def kinds() -> list[type[GpuJob]]:
    """Return all models of jobs that run on a device."""
    return [model for model in apps.get_models() if issubclass(model, GpuJob)]


def running(project: Project) -> int:
    """Return the number of the project's jobs of every kind that hold a lease."""
    return count(project, status__in=LEASED)


def count(project: Project, **condition: Any) -> int:
    """Return the number of the project's jobs of every kind that match the condition."""
    return sum(kind.objects.filter(project=project, **condition).count() for kind in kinds())


def require_room(project: Project) -> None:
    """Check that the project is below its limit of queued jobs. Raises Conflict."""
    if settings.PROJECT_QUEUED and count(project, status="queued") >= settings.PROJECT_QUEUED:
        raise Conflict(
            f"{project} has {settings.PROJECT_QUEUED} jobs waiting, which is its limit: cancel one, or wait.",
            code="queue_full",
        )
