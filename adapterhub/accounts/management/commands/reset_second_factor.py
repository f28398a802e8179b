"""`manage.py reset_second_factor NAME --reason WHY`: remove the second factor of a person who lost app and codes."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from adapterhub.accounts import second_factor
from adapterhub.accounts.models import SecondFactor
from adapterhub.core.actor import system


class Command(BaseCommand):
    """Remove a user's second factor."""

    help = "Remove a user's second factor; the audit trail records it with the reason."

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the user's name and the reason."""
        parser.add_argument("name")
        parser.add_argument("--reason", required=True)

    def handle(self, *, name: str, reason: str, **_: Any) -> None:
        """Remove the user's second factor and record that with the reason.

        Raises CommandError if there is no such user, or if the user has no second factor.
        """
        factor = SecondFactor.objects.filter(user__username=name).select_related("user").first()
        if factor is None:
            raise CommandError(f"{name!r} has no second factor: check the name.")
        second_factor.disable(factor.user, by=system("command"), reason=reason)
