"""`manage.py ensure_user NAME --password-file FILE`: an administrator, made once."""

from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from adapterhub.accounts.models import User

SHORTEST = 12


class Command(BaseCommand):
    help = "Create an administrator, if there is none of this name."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("name")
        # A file, since the arguments of a process can be read by everybody on the machine.
        parser.add_argument("--password-file", type=Path, required=True)

    def handle(self, *, name: str, password_file: Path, **_: Any) -> None:
        password = password_file.read_text().strip()
        if len(password) < SHORTEST:
            raise CommandError(f"--password-file: the password must have at least {SHORTEST} characters.")
        if not User.objects.filter(username=name).exists():
            User.objects.create_superuser(name, password=password)
