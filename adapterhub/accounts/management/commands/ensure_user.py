"""Create an account if it is missing.

`manage.py ensure_user NAME --password-file FILE [--email ADDRESS] [--member PROJECT:ROLE]`
"""

from pathlib import Path
from typing import Any

from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import transaction

from adapterhub.accounts import memberships
from adapterhub.accounts.models import Membership, Project, User
from adapterhub.core.actor import system

SHORTEST = 12


class Command(BaseCommand):
    """Create a user unless there is one of this name; update the role and mail address of one that exists."""

    help = "Create an administrator, or a member of a project, if there is none of this name."

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the user's name, the password's file, the mail address and the role."""
        parser.add_argument("name")
        # A file, since the arguments of a process can be read by everybody on the machine.
        parser.add_argument("--password-file", type=Path, required=True)
        parser.add_argument("--email", default="", help="mail address, which a person needs to sign approvals")
        parser.add_argument("--member", default="", help="PROJECT:ROLE; without it, an administrator")

    @transaction.atomic
    def handle(self, *, name: str, password_file: Path, member: str, email: str = "", **_: Any) -> None:
        """Create the user: an administrator of the installation or, with `member`, a member of a project with a role.

        If the user exists, only the role and the mail address change. Raises CommandError for a name with wrong
        characters, a password that is too short, and an unknown project or role.
        """
        password = password_file.read_text().strip()
        if len(password) < SHORTEST:
            raise CommandError(f"--password-file: the password must have at least {SHORTEST} characters.")
        user = User.objects.filter(username=name).first()
        if user is None:
            try:
                User.username_validator(name)
            except ValidationError as error:
                raise CommandError(f"{name!r}: {error.messages[0]}") from None
            make = User.objects.create_user if member else User.objects.create_superuser
            user = make(name, email=email, password=password)
        elif email and user.email != email:
            user.email = email
            user.save(update_fields=["email"])
        if member:
            self.add(user, *member.partition(":")[::2])

    def add(self, user: User, slug: str, role: str) -> None:
        """Grant the user a role in the project. Raises CommandError for an unknown project or role."""
        project = Project.objects.filter(slug=slug).first()
        if project is None or role not in Membership.Role.values:
            raise CommandError(
                f"--member {slug}:{role}: name a project and one of {', '.join(Membership.Role.values)}."
            )
        memberships.grant(project, user, role, by=system("command"))
