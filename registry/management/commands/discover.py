"""`manage.py discover [--once]`: keep the replicas of clusters as DNS and Kubernetes name them, until it is stopped."""

from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandParser
from django.db import close_old_connections

from adapterhub.jobs.liveness import touch
from registry.serving.discovery import Discovery, note_resident


class Command(BaseCommand):
    """Discover replicas."""

    help = "Add, drain and delete replicas as the sources of their clusters say."

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the single round."""
        parser.add_argument("--once", action="store_true", help="one round, then end")

    def handle(self, *, once: bool, **_: Any) -> None:
        """Update all clusters' replicas until the process is stopped, every DISCOVERY_S seconds and after each change.

        With `once` do so once.
        """
        discovery = Discovery(follows=not once)
        while True:
            close_old_connections()
            discovery.update()
            if once:
                return
            note_resident()
            touch()
            discovery.wait(settings.DISCOVERY_S)
