"""`manage.py run_signer --socket PATH | --host ADDRESS --port PORT`: run the signer process."""

from pathlib import Path
from typing import Any

import uvicorn
from django.core.management.base import BaseCommand, CommandError, CommandParser

from adapterhub.accounts.signer.server import application
from adapterhub.core.domain_signals import LEFT_TO_WEB


class Command(BaseCommand):
    """The command that starts the signer: the process that carries out what people sign under its own database role."""

    help = "Verify people and carry out what they sign. DATABASE_URL names the signer's own role."

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the socket, or the host and port, to listen on."""
        parser.add_argument("--socket", type=Path, help="Unix socket, for a web process on this machine")
        parser.add_argument("--host", default="127.0.0.1")
        parser.add_argument("--port", type=int)

    def handle(self, *, socket: Path | None, host: str, port: int | None, **_: Any) -> None:
        """Serve on the socket, or on host and port, until a signal ends the process.

        Raises CommandError unless exactly one of socket and port is named.
        """
        if (socket is None) == (port is None):
            raise CommandError("Name --socket, or --port and --host.")
        # This process knows neither Valkey, nor the settings that stand in the routing table, nor the store.
        for disconnect in LEFT_TO_WEB:
            disconnect()
        where: dict[str, Any] = {"host": host, "port": port}
        if socket:
            socket.unlink(missing_ok=True)
            where = {"uds": str(socket)}
        uvicorn.run(application, lifespan="off", access_log=False, log_config=None, **where)
