"""`python -m serving_client.router --host H --port P --redis-url URL --snapshot FILE`."""

from __future__ import annotations

import argparse
import gc
import logging
from pathlib import Path

import uvicorn

from serving_client import telemetry
from serving_client.http_protocol import BoundedHead
from serving_client.router.app import Settings, make_app
from serving_client.router.http.hosts import LOOPBACK
from serving_client.router.reporting.log_throttle import OnceAMinute
from serving_client.router.table import MAX_AGE_S


def main() -> None:
    """Run the router with the command line's options."""
    parser = argparse.ArgumentParser(prog="python -m serving_client.router", description="AdapterHub's router.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--redis-url", required=True, help="where the routing table is published")
    parser.add_argument("--snapshot", type=Path, required=True, help="file that stores the last valid table")
    parser.add_argument("--spool", type=Path, help="file that stores reports while Valkey is unavailable")
    parser.add_argument(
        "--load-deadline-s", type=float, default=30.0, help="seconds to wait for a version that is not loaded"
    )
    parser.add_argument(
        "--hosts", default=",".join(LOOPBACK), help="host names that the router answers to, separated by commas"
    )
    parser.add_argument(
        "--table-max-age-s", type=float, default=MAX_AGE_S, help="seconds for which a routing table is served from"
    )
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s %(message)s")
    logging.getLogger().handlers[0].addFilter(OnceAMinute())
    telemetry.start("router")
    # Objects made so far live to the end, and a request's objects die young; a full collection would stop all requests.
    gc.freeze()
    gc.set_threshold(50_000, 50, 100)
    hosts = tuple(host.strip() for host in arguments.hosts.split(","))
    settings = Settings(
        arguments.redis_url,
        arguments.snapshot,
        arguments.spool,
        arguments.load_deadline_s,
        hosts,
        arguments.table_max_age_s,
    )
    uvicorn.run(
        make_app(settings),
        host=arguments.host,
        port=arguments.port,
        http=BoundedHead,
        ws="none",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=30,
        log_level="info",
    )


if __name__ == "__main__":
    main()
