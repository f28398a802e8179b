"""`manage.py backup FOLDER --passphrase-file FILE`: write the installation's rows, artifacts and keys into a folder."""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from adapterhub.backup import archive
from adapterhub.backup.errors import BackupError
from adapterhub.core.counts import counted
from adapterhub.workspace import store


class Command(BaseCommand):
    """Back up the installation while it works."""

    help = "Write the database as it is now, the artifacts that it names and the keys into a new folder."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Declare the folder, the passphrase and what may be left out."""
        parser.add_argument("folder", type=Path, help="a folder that does not exist yet")
        passphrase = parser.add_mutually_exclusive_group(required=True)
        passphrase.add_argument("--passphrase-file", type=Path, help="file with the passphrase that seals the keys")
        passphrase.add_argument("--without-keys", action="store_true", help="the keys are kept elsewhere")
        parser.add_argument(
            "--without-artifacts", action="store_true", help="list the artifacts only: the store has copies of its own"
        )

    def handle(
        self,
        *,
        folder: Path,
        passphrase_file: Path | None,
        without_keys: bool,
        without_artifacts: bool,
        **options: Any,
    ) -> None:
        """Write the backup and print what it holds. Raises CommandError, also for artifacts that are not intact."""
        try:
            passphrase = passphrase_in(passphrase_file) if not without_keys else ""
            report = archive.make(folder, store(), passphrase, with_artifacts=not without_artifacts)
        except (BackupError, OSError) as error:
            raise CommandError(str(error)) from error
        self.stdout.write(f"{folder}: {counted(report.rows, 'row')}, {counted(report.artifacts, 'artifact')}")
        if report.faults:
            raise CommandError("\n".join(report.faults))


def passphrase_in(path: Path | None) -> str:
    """Return the passphrase in the file; empty without a file. Raises OSError."""
    return path.read_text().strip() if path else ""
