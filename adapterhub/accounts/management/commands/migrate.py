"""Django's `migrate`, run as the owner role, because the application's role may not change the schema."""

from django.core.management.base import CommandParser
from django.core.management.commands import migrate


class Command(migrate.Command):
    """Django's `migrate`, as the role that owns the tables."""

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare Django's arguments, with the connection `owner` as default."""
        super().add_arguments(parser)
        parser.set_defaults(database="owner")
