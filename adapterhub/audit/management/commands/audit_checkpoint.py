"""`manage.py audit_checkpoint`: sign the head of every chain now; beat also does it every hour."""

from typing import Any

from django.core.management.base import BaseCommand

from adapterhub.audit import access_log, checkpoints


class Command(BaseCommand):
    help = "Sign the head of every audit chain and keep it outside the database."

    def handle(self, **_: Any) -> None:
        access_log.seal()
        for point in checkpoints.write_all():
            self.stdout.write(f"checkpoints/{point.path}")
