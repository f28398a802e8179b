"""Deletion of old checkpoints of runs that ended without a version; a legal hold keeps them for ever."""

from __future__ import annotations

import shutil

from django.conf import settings
from django.utils.timezone import now

from adapterhub.jobs.models import JobStatus
from training.models import TrainingRun

ENDED_EMPTY = (JobStatus.FAILED, JobStatus.CANCELLED)


def drop_old_checkpoints() -> int:
    """Delete this host's outputs of runs that failed or were cancelled longer ago than CHECKPOINTS_KEPT.

    Return their number. A later resume starts from the beginning. Runs under a legal hold are left out. No effect if
    CHECKPOINTS_KEPT is not set.
    """
    if not settings.CHECKPOINTS_KEPT:
        return 0
    since = now() - settings.CHECKPOINTS_KEPT
    ended = TrainingRun.objects.filter(status__in=ENDED_EMPTY, finished_at__lt=since, hold_reason="")
    folders = [settings.WORK_DIR / str(pk) / "output" for pk in ended.values_list("pk", flat=True)]
    expired = [folder for folder in folders if folder.is_dir()]
    for folder in expired:
        shutil.rmtree(folder, ignore_errors=True)
    return len(expired)
