"""`manage.py create_token NAME --project P --scope S`: prints only the token."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import transaction

from adapterhub.accounts.actor import system
from adapterhub.accounts.models import ApiToken, Project, Scope
from adapterhub.audit.models import AuditEvent
from adapterhub.audit.tags import Tag


class Command(BaseCommand):
    help = "Create an API token and print it. It cannot be shown again."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("name")
        parser.add_argument("--project", required=True, help="slug of the project")
        parser.add_argument("--scope", action="append", required=True, choices=Scope.values)

    @transaction.atomic
    def handle(self, *, name: str, project: str, scope: list[str], **_: Any) -> str:
        tenant = Project.objects.filter(slug=project).first()
        if tenant is None:
            raise CommandError(f"--project {project!r}: there is no such project. Known: {known_projects()}.")
        token, text = ApiToken.issue(name=name, project=tenant, scopes=sorted(set(scope)))
        AuditEvent.record(
            Tag.TOKEN_CREATED, token, by=system("command"), project=tenant, after={"scopes": token.scopes}
        )
        return text


def known_projects() -> str:
    return ", ".join(Project.objects.values_list("slug", flat=True)) or "none yet"
