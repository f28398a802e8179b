"""`python -m adapterhub.web --host H --port P`: the web process, with bounds of heads, answers and connections."""

from __future__ import annotations

import argparse

import uvicorn

from adapterhub import environment
from serving_client.http_protocol import BoundedConnection, Connections, bounded_by_files


def main() -> None:
    """Run the web process until a signal ends it."""
    parser = argparse.ArgumentParser(prog="python -m adapterhub.web", description="AdapterHub's web process.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--grace-s", type=int, default=5, help="how long a stop waits for open event streams")
    arguments = parser.parse_args()
    uvicorn.run(
        "adapterhub.asgi:application",
        host=arguments.host,
        port=arguments.port,
        http=BoundedConnection.within(connections()),
        ws="none",
        access_log=False,
        # Its lines go where the application's go, in the same format.
        log_config=None,
        # The application believes the proxies of ADAPTERHUB_PROXIES; uvicorn would believe whatever comes from here.
        proxy_headers=False,
        timeout_graceful_shutdown=arguments.grace_s,
    )


def connections() -> Connections:
    """Return the limits of connections that the environment sets, within what open files allow."""
    return Connections(
        bounded_by_files(environment.integer("ADAPTERHUB_CONNECTIONS", least=1, most=2**20)),
        environment.integer("ADAPTERHUB_CONNECTIONS_PER_ADDRESS"),
        environment.networks("ADAPTERHUB_PROXIES"),
    )


if __name__ == "__main__":
    main()
