"""`manage.py audit_checkpoint`: sign the head of every chain now; beat also does it every hour."""

from typing import Any

from django.core.management.base import BaseCommand

from adapterhub.audit import access_log, checkpoints


class Command(BaseCommand):
    """Sign the heads of the audit chains."""

    help = "Sign the head of every audit chain and store it outside the database."

    def handle(self, **_: Any) -> None:
        """Seal the waiting events, write a checkpoint of every chain, and print their paths."""
        access_log.seal()
        for point in checkpoints.write_all():
            self.stdout.write(f"checkpoints/{point.path}")
