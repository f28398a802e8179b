"""Claiming the next job: the most urgent one whose project is below its limit. Postgres decides, not the message."""

from __future__ import annotations

from django.apps import apps
from django.conf import settings
from django.db import transaction

from adapterhub.accounts.models import Project
from training.models.job import GpuJob, kinds, running


def claim(kind: str, pk: str) -> GpuJob | None:
    """Claim and return the job that a message names, or a more urgent one that is queued.

    The named job stays queued then.

    Returns None if the named one is not queued, or if neither can be claimed: another worker has it, or its project is
    at its limit of running jobs.
    """
    named = apps.get_model("training", kind).objects.queued().filter(pk=pk).first()
    if named is None:
        return None
    for job in [*more_urgent(named), named]:
        if claimed := claim_within_limit(job):
            return claimed
    return None


def more_urgent(named: GpuJob) -> list[GpuJob]:
    """Return queued jobs of all kinds with a higher priority, most urgent first, the oldest first among equals."""
    jobs = [job for kind in kinds() for job in kind.objects.queued().filter(priority__gt=named.priority)]
    return sorted(jobs, key=lambda job: (-job.priority, job.created_at))


def claim_within_limit(job: GpuJob) -> GpuJob | None:
    """Claim and return the job; None if another worker has it or its project is at its limit of running jobs.

    The project's row is locked while its running jobs are counted.
    """
    if not settings.PROJECT_RUNNING:
        return type(job).claim(job.pk)
    with transaction.atomic():
        Project.objects.select_for_update().get(pk=job.project_id)
        if running(job.project) >= settings.PROJECT_RUNNING:
            return None
        return type(job).claim(job.pk)
