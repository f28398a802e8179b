"""`manage.py restore FOLDER --passphrase-file FILE [--replace]`: make this installation what it was at a backup."""

from __future__ import annotations

import subprocess
import sys
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import connection

from adapterhub.accounts.models import Project
from adapterhub.backup import archive
from adapterhub.backup.errors import BackupError
from adapterhub.core.counts import counted
from adapterhub.workspace import store
from registry.management.commands.backup import passphrase_in
from registry.models import BaseModel


class Command(BaseCommand):
    """Restore keys, rows, and missing or damaged artifacts from a backup, and verify the audit trail.

    Stop the installation's processes first: they are noticed only by locks on tables. Existing projects need
    --replace, and keys in the backup its passphrase.
    """

    help = "Replace keys, rows and damaged artifacts by those of a backup, and verify the audit trail."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Declare the backup, its passphrase, and the word that data may be lost."""
        parser.add_argument("folder", type=Path, help="what `backup` wrote")
        parser.add_argument("--passphrase-file", type=Path, help="file with the passphrase of the backup")
        parser.add_argument("--replace", action="store_true", help="drop the projects that this installation has")

    def handle(self, *, folder: Path, passphrase_file: Path | None, replace: bool, **options: Any) -> None:
        """Restore, verify, and print what is there again. Raises CommandError, also for what could not be restored."""
        if not replace and has_projects():
            raise CommandError("This installation has projects, which a restore drops: say --replace if it should.")
        try:
            passphrase = passphrase_in(passphrase_file)
            report = archive.put_back(folder, store(), passphrase)
        except (BackupError, OSError) as error:
            raise CommandError(str(error)) from error
        self.stdout.write(f"{folder}: {counted(report.rows, 'row')}, {counted(report.artifacts, 'artifact')}")
        faults = report.faults + missing_models()
        # By a process that reads the restored keys.
        verify = [sys.executable, "-m", "adapterhub.manage", "audit_verify"]
        if subprocess.run(verify, check=False).returncode:  # noqa: S603 - our own command
            faults.append("The audit trail is not intact.")
        if faults:
            raise CommandError("\n".join(faults))


def has_projects() -> bool:
    """Return True if the database has tables, and a project in them."""
    if Project._meta.db_table not in connection.introspection.table_names():
        return False
    return Project.objects.exists()


def missing_models() -> list[str]:
    """Return a sentence for each base model whose folder is not here; base models are not part of a backup."""
    return [
        f"The base model {model.slug} ({model.source} {model.revision}) is not in the data folder: put it back, "
        f"its digest must be {model.digest[:12]}."
        for model in BaseModel.objects.ready()
        if not model.folder.is_dir()
    ]
