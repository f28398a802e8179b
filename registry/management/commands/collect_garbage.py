"""`manage.py collect_garbage [--dry-run] [--grace-hours 24]`: delete artifacts that no row refers to."""

from argparse import ArgumentParser
from datetime import timedelta
from typing import Any

from django.core.management.base import BaseCommand

from adapterhub.artifact_gc import collect
from adapterhub.workspace import store


class Command(BaseCommand):
    """Delete artifacts that no row of any table refers to."""

    help = "Delete artifacts that no row of any table refers to and that nobody stored within the grace time."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Declare the dry run and the grace time."""
        parser.add_argument("--dry-run", action="store_true", help="name them only")
        parser.add_argument(
            "--grace-hours", type=float, default=24, help="how long an unreferenced artifact is kept, in hours"
        )

    def handle(self, *args: Any, dry_run: bool, grace_hours: float, **options: Any) -> None:
        """Delete unreferenced artifacts older than the grace time and print their digests and number.

        Only print with `dry_run`.
        """
        count = 0
        for digest in collect(store(), timedelta(hours=grace_hours), dry_run=dry_run):
            self.stdout.write(digest)
            count += 1
        self.stdout.write(f"{count} artifact(s) {'would be deleted' if dry_run else 'deleted'}")
