"""`manage.py audit_verify [--checkpoints DIR --public-key FILE]`: verify every chain; exit 1 if one is broken."""

from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from adapterhub.audit.models import verify
from adapterhub.audit.verifier import INSTALLATION, Checkpoint, Unreadable, read_checkpoints, read_public_key
from adapterhub.core.tenancy import Tenant, project_model


class Command(BaseCommand):
    """Verify the audit chains."""

    help = "Verify the hash chain of every project, against the checkpoints of the database and of a folder."

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the folder of checkpoints and their public key."""
        parser.add_argument("--checkpoints", type=Path, help="folder of checkpoints stored outside the database")
        parser.add_argument("--public-key", type=Path, help="the key they were signed with; needed with --checkpoints")

    def handle(self, *, checkpoints: Path | None, public_key: Path | None, **_: Any) -> None:
        """Report the faults of every chain. Raises CommandError if there is one."""
        outside = self.read(checkpoints, public_key) if checkpoints else []
        broken = sum(self.report(project, outside) for project in [None, *project_model().objects.all()])
        if broken:
            raise CommandError(f"{broken} events are not intact: compare them with a backup or an earlier export.")

    def read(self, folder: Path, public_key: Path | None) -> list[Checkpoint]:
        """Read the checkpoints that were kept outside. Raises CommandError."""
        if public_key is None:
            raise CommandError("--public-key is missing: name the key that signed the checkpoints.", returncode=2)
        try:
            return read_checkpoints(folder, read_public_key(public_key))
        except Unreadable as error:
            raise CommandError(str(error), returncode=2) from error

    def report(self, project: Tenant | None, outside: list[Checkpoint]) -> int:
        """Print the verdict on a project's chain; return the number of its faults."""
        name = project.slug if project else INSTALLATION
        count, faults = verify(project, [point for point in outside if point.project == name])
        for fault in faults:
            self.stdout.write(f"{name}: event {fault.sequence} {fault.kind}")
        if not faults:
            self.stdout.write(f"{name}: {count} events intact")
        return len(faults)
