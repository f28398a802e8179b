"""`manage.py export_edge ALIAS FOLDER`: write a bundle that serves the alias on a machine without AdapterHub."""

from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from adapterhub.artifacts import ArtifactError
from registry.exports.edge_bundle import write_bundle
from registry.models import Alias


class Command(BaseCommand):
    """Export what an alias serves for a machine without AdapterHub."""

    help = "Write what an alias serves into a new folder: adapter, base reference, checksums, run command."

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the alias and the new folder."""
        parser.add_argument("alias")
        parser.add_argument("folder", type=Path)

    def handle(self, *, alias: str, folder: Path, **_: Any) -> None:
        """Write the bundle of what the alias serves into the new folder.

        If several projects have an alias of this name, the first is taken. Raises CommandError for an unknown alias, a
        folder that exists, or files that cannot be read.
        """
        record = Alias.objects.filter(name=alias).first()
        if record is None:
            raise CommandError(f"There is no alias {alias!r}.")
        if folder.exists():
            raise CommandError(f"{folder} exists already: name a new folder.")
        folder.mkdir(parents=True)
        try:
            write_bundle(record, folder)
        except ArtifactError as error:
            raise CommandError(str(error)) from error
