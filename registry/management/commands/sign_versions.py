"""`manage.py sign_versions`: check and sign the versions that were published before versions were signed."""

from typing import Any

from django.core.management.base import BaseCommand

from registry.models import AdapterVersion
from registry.uploads.verification import sign_unsigned


class Command(BaseCommand):
    """Sign the versions that have no signature."""

    help = "Check the files of every unsigned ready version and sign the intact ones."

    def handle(self, *args: Any, **options: Any) -> None:
        """Check the files of each ready version without a signature, sign it if they are intact, and print that."""
        for version in AdapterVersion.objects.ready().filter(signature="").select_related("adapter__project"):
            fault = sign_unsigned(version)
            self.stdout.write(f"{version.served_name}: {fault or 'signed'}")
