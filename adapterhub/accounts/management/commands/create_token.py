"""`manage.py create_token NAME --project P --scope S`: create an API token and print only its text."""

from datetime import timedelta
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import connection
from django.utils.timezone import now

from adapterhub.accounts import tokens
from adapterhub.accounts.models import Membership, Project, User
from adapterhub.accounts.signer.privileges import may_sign_here
from adapterhub.core.actor import Actor
from adapterhub.core.errors import Invalid
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
            "--person", help="who answers for it and cannot sign what it asks; the only admin there is, if left out"
        )
        parser.add_argument(
            "--days", type=int, default=tokens.DAYS, help=f"lifetime in days, at most {tokens.LONGEST_DAYS}"
        )

        parser.add_argument("--requests-per-s", type=float, help="requests a second that routers take of it")
        parser.add_argument("--tokens-per-min", type=int, help="tokens of questions and answers a minute")

    def handle(
        self, *, name: str, project: str, scope: list[str], days: int, person: str | None = None, **options: Any
    ) -> str:
        """Create the token and return its text, which is printed. Raises CommandError naming the wrong option.

        For scope admin, this process connects as the signer's role first.
        """
        tenant = Project.objects.filter(slug=project).first()
        if not 1 <= days <= tokens.LONGEST_DAYS:
            raise CommandError(f"--days {days}: choose 1 to {tokens.LONGEST_DAYS}.")
        if tenant is None:
            raise CommandError(f"--project {project!r}: there is no such project. Known: {known_projects()}.")
        expires_at = now() + timedelta(days=days)
        if Scope.ADMIN in scope:
            become_signer()
        by = Actor(name="system:command", method="system", user=answering(tenant, person, scope))
        try:
            return tokens.create(
                tenant,
                name,
                sorted(set(scope)),
                by=by,
                expires_at=expires_at,
                requests_per_s=options.get("requests_per_s"),
                tokens_per_min=options.get("tokens_per_min"),
            )[1]
        except Invalid as error:
            raise CommandError(error.detail) from None


def become_signer() -> None:
    """Connect to the database as the signer's role from now on, unless this process may sign already.

    Raises CommandError if that role is not configured.
    """
    if may_sign_here():
        return
    if not settings.SIGNER_DATABASE:
        raise CommandError(
            "--scope admin: only the signer's role may make such a token. Run this where the signer runs, with its "
            "DATABASE_URL, or set DATABASE_SIGNER_URL."
        )
    connection.close()
    signer = settings.SIGNER_DATABASE
    connection.settings_dict.update(
        USER=signer["USER"], PASSWORD=signer["PASSWORD"], HOST=signer["HOST"], PORT=signer["PORT"]
    )


def answering(project: Project, name: str | None, scopes: list[str]) -> User | None:
    """Return the person who answers for a token: the one named, else the only admin of the project or installation.

    None if there is no such person: then the token can neither ask for signatures nor make tokens of scope admin.
    Raises CommandError for a token of scope admin that several could answer for.
    """
    people = User.objects.filter(is_active=True, is_service=False)
    if name is not None:
        if person := people.filter(username=name).first():
            return person
        raise CommandError(f"--person {name!r}: there is no such active person.")
    admins = people.filter(memberships__project=project, memberships__role=Membership.Role.ADMIN).distinct()
    candidates = list((admins if admins.exists() else people.filter(is_superuser=True))[:2])
    if len(candidates) == 1:
        return candidates[0]
    if candidates and Scope.ADMIN in scopes:
        raise CommandError("--person: name the person who answers for a token of scope admin.")
    return None


def known_projects() -> str:
    """Return the slugs of all projects, separated by commas, for an error message; `none yet` without any."""
    return ", ".join(Project.objects.values_list("slug", flat=True)) or "none yet"
