"""The file that a worker, beat or discovery touches while it is alive, for the health check of a container."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from celery.beat import PersistentScheduler
from django.conf import settings


def touch() -> None:
    """Renew the time of the file that ADAPTERHUB_ALIVE_PATH names; no effect without the setting."""
    if settings.ALIVE_FILE:
        Path(settings.ALIVE_FILE).touch()


class Scheduler(PersistentScheduler):
    """Celery's scheduler, which touches the health check's file each time that it looks for due tasks."""

    def tick(self, *arguments: Any, **options: Any) -> float:
        """Send the tasks that are due; return the seconds until the next one."""
        touch()
        return float(super().tick(*arguments, **options))
