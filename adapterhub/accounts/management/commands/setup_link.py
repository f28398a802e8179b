"""`manage.py setup_link [--url URL] [--if-empty]`: print the one-time link that creates the first administrator."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.urls import reverse

from adapterhub.accounts import setup_link
from adapterhub.core.actor import system
from adapterhub.core.errors import Conflict


class Command(BaseCommand):
    """Print the one-time link that creates the first administrator."""

    help = "Print the one-time link that creates the first administrator. An earlier link ends."

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the address of the web process, and whether accounts are an error."""
        parser.add_argument("--url", default="http://127.0.0.1:8000", help="address at which people reach AdapterHub")
        parser.add_argument("--if-empty", action="store_true", help="print nothing if there is an account")

    def handle(self, *, url: str, if_empty: bool, **_: Any) -> str:
        """Issue a link and return its URL, which is printed.

        If there is an account, raise CommandError or, with `if_empty`, return an empty text.
        """
        if if_empty and not setup_link.is_empty():
            return ""
        try:
            secret = setup_link.issue(by=system("command"))
        except Conflict as error:
            raise CommandError(error.detail) from None
        return f"{url.rstrip('/')}{reverse('setup', args=[secret])}"
