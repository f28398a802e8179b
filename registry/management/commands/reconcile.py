"""`manage.py reconcile [--loop]`: run the control loop once, or as a resident process."""

import time
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandParser

from adapterhub.jobs.task_times import note_success
from registry.serving.cluster_threads import ClusterThreads

# The task that a resident loop stands in for: its age is the loop's in /metrics.
TASK = "registry.tasks.reconcile"


class Command(BaseCommand):
    """Load the desired versions on every replica and unload the others, once or in a loop."""

    help = "Load the desired versions on every replica and unload the others."

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare `--loop`."""
        parser.add_argument("--loop", action="store_true", help="repeat until stopped")

    def handle(self, *, loop: bool, **_: Any) -> None:
        """Reconcile all clusters once.

        With `loop` repeat until the process is stopped, at the interval of beat's schedule.
        """
        pause_s: Any = settings.CELERY_BEAT_SCHEDULE["reconcile"]["schedule"]
        clusters = ClusterThreads()
        clusters.reconcile()
        while loop:
            note_success(TASK)
            time.sleep(pause_s)
            clusters.reconcile()
        clusters.close()
