"""`manage.py ensure_user NAME`: an administrator with the password of DJANGO_SUPERUSER_PASSWORD, made once."""

import os
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from adapterhub.accounts.models import User


class Command(BaseCommand):
    help = "Create an administrator, if there is none of this name."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("name")

    def handle(self, *, name: str, **_: Any) -> None:
        password = os.environ.get("DJANGO_SUPERUSER_PASSWORD", "")
        if len(password) < 12:
            raise CommandError("DJANGO_SUPERUSER_PASSWORD must hold a password of at least 12 characters.")
        if not User.objects.filter(username=name).exists():
            User.objects.create_superuser(name, password=password)
