"""`manage.py create_project SLUG [--name NAME] [--admin USER]`: create a project, the first step after installing."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import transaction

from adapterhub.accounts import memberships
from adapterhub.accounts.models import Membership, Project, User
from adapterhub.audit.models import AuditEvent
from adapterhub.audit.tags import Tag
from adapterhub.core.actor import system


class Command(BaseCommand):
    """Create a project and name its admin."""

    help = "Create a project, if it does not exist, and make a user its admin."

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the project's slug and name, and its admin."""
        parser.add_argument("slug")
        parser.add_argument("--name")
        parser.add_argument("--admin", help="user name of the project's admin")

    @transaction.atomic
    def handle(self, *, slug: str, name: str | None, admin: str | None, **_: Any) -> str:
        """Create the project unless it exists, make `admin` its admin if named, and return the slug, which is printed.

        Raises CommandError for an unknown user; no project is created then.
        """
        project, created = Project.objects.get_or_create(slug=slug, defaults={"name": name or slug})
        if created:
            AuditEvent.record(Tag.PROJECT_CREATED, project, by=system("command"), project=project)
        if admin:
            user = User.objects.filter(username=admin).first()
            if user is None:
                raise CommandError(
                    f"--admin {admin!r}: there is no such user; create one with `manage.py createsuperuser`."
                )
            memberships.grant(project, user, Membership.Role.ADMIN, by=system("command"))
        return project.slug
