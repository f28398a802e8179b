"""`python -m adapterhub.web --host H --port P`: the web process, with an end to each request's head."""

from __future__ import annotations

import argparse

import uvicorn

from serving_client.http_protocol import BoundedHead


def main() -> None:
    """Serve until a signal ends the process."""
    parser = argparse.ArgumentParser(prog="python -m adapterhub.web", description="AdapterHub's web process.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--grace-s", type=int, default=5, help="how long a stop waits for open event streams")
    arguments = parser.parse_args()
    uvicorn.run(
        "adapterhub.asgi:application",
        host=arguments.host,
        port=arguments.port,
        http=BoundedHead,
        ws="none",
        access_log=False,
        # The application believes the proxies of ADAPTERHUB_PROXIES; uvicorn would believe whatever comes from here.
        proxy_headers=False,
        timeout_graceful_shutdown=arguments.grace_s,
    )


if __name__ == "__main__":
    main()
