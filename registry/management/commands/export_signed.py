"""`manage.py export_signed VERSION FOLDER --key KEY`: write a version with a signature bundle in sigstore's layout."""

from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from adapterhub.artifacts import ArtifactError
from adapterhub.core.errors import DomainError
from registry.evidence.sigstore_bundle import write_signed
from registry.models import AdapterVersion


class Command(BaseCommand):
    """Export a version with a signature that other tools verify."""

    help = "Write a version's files and their signature bundle, as the package model-signing verifies it."

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the version, the new folder and the private key."""
        parser.add_argument("version", help="its served name")
        parser.add_argument("folder", type=Path)
        parser.add_argument("--key", type=Path, required=True, help="an elliptic private key, PEM without a password")

    def handle(self, *, version: str, folder: Path, key: Path, **_: Any) -> None:
        """Write and sign the files, and print the path of the signature bundle.

        Raises CommandError for a version that is not ready, a folder that exists, a bad key, or files that cannot be
        read.
        """
        record = AdapterVersion.objects.ready().filter(served_name=version).first()
        if record is None:
            raise CommandError(f"There is no version {version!r} that is ready.")
        if folder.exists():
            raise CommandError(f"{folder} exists already: name a new folder.")
        try:
            self.stdout.write(str(write_signed(record, folder, key)))
        except (DomainError, ArtifactError) as error:
            raise CommandError(str(error)) from error
