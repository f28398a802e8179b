"""Jobs under a lease. The row in Postgres is the state; a Celery message only wakes a worker up.

A worker claims a queued row by compare-and-set and gets the attempt number as its fencing token. Every later write of
the attempt checks the token, so a worker that was paused past its lease cannot write any more.
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any, Self

from django.conf import settings
from django.db import models, transaction
from django.db.models import F, Q
from django.db.models.functions import Now
from django.utils.timezone import now

from adapterhub.core.errors import InvalidTransition


class JobStatus(models.TextChoices):
    """The states of a job."""

    QUEUED = "queued"
    RUNNING = "running"
    STOPPING = "stopping"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


LEASED = (JobStatus.RUNNING, JobStatus.STOPPING)
TERMINAL = (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED)


class StaleAttempt(Exception):
    """Raised when the lease has passed to another attempt or the job has ended: this attempt may not write any more."""


def default_max_attempts() -> int:
    """Return the number of attempts of a new job, JOB_ATTEMPTS."""
    return settings.JOB_ATTEMPTS


class LeasedJobQuerySet(models.QuerySet[Any]):
    """Query set of jobs, filtered by their state."""

    def active(self) -> Self:
        """Return the jobs that have not ended."""
        return self.exclude(status__in=TERMINAL)

    def queued(self) -> Self:
        """Return the jobs that wait to be claimed."""
        return self.filter(status=JobStatus.QUEUED)

    def abandoned(self) -> Self:
        """Return the jobs whose lease has expired without a heartbeat, by the database's clock."""
        return self.filter(status__in=LEASED, lease_expires_at__lt=Now())

    def held_by(self, pk: Any, attempt: int) -> Self:
        """Return the job, as a queryset, if this attempt still holds its lease; else none."""
        return self.filter(pk=pk, attempt=attempt, status__in=LEASED)


class LeasedJob(models.Model):
    """An abstract job that a worker runs in a child process under a lease, which heartbeats extend.

    A subclass provides `child_arguments`, `note`, `wake_worker`, and `succeeded`, `failed` and `cancelled`, which each
    end with their audit event.
    """

    status = models.CharField(max_length=20, choices=JobStatus.choices, default=JobStatus.QUEUED, editable=False)
    reason = models.CharField(max_length=60, blank=True, editable=False)
    message = models.TextField(blank=True, editable=False)
    attempt = models.PositiveIntegerField(default=0, editable=False)
    max_attempts = models.PositiveIntegerField(default=default_max_attempts, editable=False)
    lease_expires_at = models.DateTimeField(null=True, editable=False)
    progress = models.JSONField(default=dict, editable=False)
    created_at = models.DateTimeField(default=now, editable=False)
    started_at = models.DateTimeField(null=True, editable=False)
    finished_at = models.DateTimeField(null=True, editable=False)

    objects = LeasedJobQuerySet.as_manager()

    class Meta:
        abstract = True
        ordering = ["-id"]
        constraints = [
            models.CheckConstraint(
                condition=Q(status__in=LEASED, lease_expires_at__isnull=False)
                | (~Q(status__in=LEASED) & Q(lease_expires_at__isnull=True)),
                name="%(class)s_has_lease_while_leased",
            )
        ]

    @property
    def is_active(self) -> bool:
        """Return True until the job has ended."""
        return self.status not in TERMINAL

    def child_arguments(self, folder: Path) -> list[str]:
        """Prepare the folder and return the child's arguments after `python -m`."""
        raise NotImplementedError

    def succeeded(self, folder: Path) -> None:
        """Store the child's results from the folder and end the job."""
        raise NotImplementedError

    def failed(self, reason: str, message: str) -> None:
        """End the job as failed."""
        raise NotImplementedError

    def cancelled(self) -> None:
        """End the job as cancelled."""
        raise NotImplementedError

    @classmethod
    def claim(cls, pk: Any) -> Self | None:
        """Claim a queued job for a new attempt and return it; None if another worker has it or it was cancelled."""
        claimed = (
            cls.objects.queued()
            .filter(pk=pk)
            .update(
                status=JobStatus.RUNNING,
                attempt=F("attempt") + 1,
                lease_expires_at=Now() + lease(),
                started_at=models.functions.Coalesce("started_at", Now()),
                reason="",
                message="",
            )
        )
        claimed_job: Self | None = cls.objects.get(pk=pk) if claimed else None
        return claimed_job

    def heartbeat(self) -> str:
        """Extend the lease and return the current status. Raises StaleAttempt if this attempt no longer holds it."""
        self.write(lease_expires_at=Now() + lease())
        return type(self).objects.values_list("status", flat=True).get(pk=self.pk)

    def write(self, **fields: Any) -> None:
        """Save these fields if this attempt still holds the lease. Raises StaleAttempt otherwise."""
        if not type(self).objects.held_by(self.pk, self.attempt).update(**fields):
            raise StaleAttempt(f"{self} is no longer attempt {self.attempt}'s.")

    def end(self, status: JobStatus, *, reason: str = "", message: str = "") -> None:
        """Set a terminal status with its reason. Raises StaleAttempt if this attempt no longer holds the lease."""
        self.write(status=status, reason=reason, message=message, lease_expires_at=None, finished_at=Now())
        self.refresh_from_db()

    def lock(self) -> Self:
        """Return the current row, locked until the end of the transaction."""
        row: Self = type(self).objects.select_for_update().get(pk=self.pk)
        return row

    def stop_or_cancel(self) -> None:
        """Cancel a queued job at once, or ask a running one to stop. A repeated call changes nothing.

        Raises InvalidTransition for a job that has succeeded or failed.
        """
        if self.status == JobStatus.QUEUED:
            self.status, self.finished_at = JobStatus.CANCELLED, now()
        elif self.status == JobStatus.RUNNING:
            self.status = JobStatus.STOPPING
        elif self.status in (JobStatus.SUCCEEDED, JobStatus.FAILED):
            raise InvalidTransition(f"It has already {self.status} and can no longer be cancelled.")
        self.save(update_fields=["status", "finished_at"])

    @classmethod
    def reclaim(cls, pk: Any) -> None:
        """End the attempt of a job whose lease has expired, as `give_back` does.

        No effect if its worker has sent a heartbeat in the meantime, or another process is doing the same.
        """
        with transaction.atomic():
            job = cls.objects.abandoned().select_for_update(skip_locked=True).filter(pk=pk).first()
            if job:
                job.give_back()

    def give_back(self) -> None:
        """End an abandoned attempt: queue the job again, or end it as cancelled or failed.

        It is cancelled if it was stopping, and fails as `worker_lost` after its last attempt.
        """
        if self.status == JobStatus.STOPPING:
            self.cancelled()
        elif self.attempt >= self.max_attempts:
            self.failed("worker_lost", f"{self.attempt} workers died while running it.")
        else:
            self.write(status=JobStatus.QUEUED, lease_expires_at=None)
            self.refresh_from_db()


def lease() -> timedelta:
    """Return how long a claim or a heartbeat keeps the job for this attempt."""
    return timedelta(seconds=settings.LEASE_S)
