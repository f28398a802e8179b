"""`manage.py reconcile [--loop]`: run the control loop once, or as a resident process."""

import time
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandParser

from registry.serving.reconciler import reconcile


class Command(BaseCommand):
    """Run the control loop."""

    help = "Load the desired versions on every replica and unload the others."

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the endless loop."""
        parser.add_argument("--loop", action="store_true", help="repeat until stopped")

    def handle(self, *, loop: bool, **_: Any) -> None:
        """Reconcile once, or until the process is stopped."""
        pause_s: Any = settings.CELERY_BEAT_SCHEDULE["reconcile"]["schedule"]
        reconcile()
        while loop:
            time.sleep(pause_s)
            reconcile()
