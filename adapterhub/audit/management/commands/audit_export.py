"""`manage.py audit_export PROJECT FOLDER`: write the bundle with which an outsider verifies a project's trail."""

from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from adapterhub.audit import access_log, checkpoints
from adapterhub.audit.export import write_bundle
from adapterhub.core.tenancy import project_model


class Command(BaseCommand):
    """Export a project's audit trail."""

    help = "Write events (JSONL, CSV), checkpoints, public key and signed manifest of a project into a new folder."

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the project and the folder, which must be new."""
        parser.add_argument("project", help="slug of the project")
        parser.add_argument("folder", type=Path, help="a folder that does not exist yet")

    def handle(self, *, project: str, folder: Path, **_: Any) -> None:
        """Seal the waiting events, write a checkpoint, and write the bundle into the folder.

        Raises CommandError for an unknown project or a folder that exists.
        """
        owner = project_model().objects.filter(slug=project).first()
        if owner is None:
            raise CommandError(f"PROJECT {project!r}: there is no such project.")
        if folder.exists():
            raise CommandError(f"FOLDER {folder} exists already: name a new folder.")
        access_log.seal()
        checkpoints.write(owner)
        write_bundle(owner, folder)
