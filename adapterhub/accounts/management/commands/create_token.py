"""`manage.py create_token NAME --project P --scope S`: create an API token and print only its text."""

from datetime import timedelta
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils.timezone import now

from adapterhub.accounts import tokens
from adapterhub.accounts.models import Project
from adapterhub.core.actor import system
from adapterhub.core.tenancy import Scope


class Command(BaseCommand):
    """Create an API token."""

    help = "Create an API token and print it. It cannot be shown again."

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the token's name, project, scopes and lifetime."""
        parser.add_argument("name")
        parser.add_argument("--project", required=True, help="slug of the project")
        parser.add_argument("--scope", action="append", required=True, choices=Scope.values)

        parser.add_argument(
            "--days", type=int, default=tokens.DAYS, help=f"lifetime in days, at most {tokens.LONGEST_DAYS}"
        )

    def handle(self, *, name: str, project: str, scope: list[str], days: int, **_: Any) -> str:
        """Create the token and return its text."""
        tenant = Project.objects.filter(slug=project).first()
        if not 1 <= days <= tokens.LONGEST_DAYS:
            raise CommandError(f"--days {days}: choose 1 to {tokens.LONGEST_DAYS}.")
        if tenant is None:
            raise CommandError(f"--project {project!r}: there is no such project. Known: {known_projects()}.")
        expires_at = now() + timedelta(days=days)
        return tokens.create(tenant, name, sorted(set(scope)), by=system("command"), expires_at=expires_at)[1]


def known_projects() -> str:
    """Return the slugs of all projects, for an error message."""
    return ", ".join(Project.objects.values_list("slug", flat=True)) or "none yet"
