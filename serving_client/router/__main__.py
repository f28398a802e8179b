"""`python -m serving_client.router --host H --port P --redis-url URL --snapshot FILE`."""

from __future__ import annotations

import argparse
import gc
import logging
from pathlib import Path

import uvicorn

from serving_client import log_lines, telemetry
from serving_client.engine_keys import kept_secret
from serving_client.http_protocol import BoundedConnection, Connections, bounded_by_files
from serving_client.router.app import Settings, make_app
from serving_client.router.http.host_header import LOOPBACK
from serving_client.router.reporting.log_throttle import OnceAMinute
from serving_client.router.table_follower import MAX_AGE_S

# Longer than fronts keep idle connections: nginx and AWS 60 s, Google 600 s. A request on a closing one would be lost.
KEEP_ALIVE_S = 620


def main() -> None:
    """Run the router with the command line's options until a signal ends the process.

    Creates the files of the secret and the metrics token if they are missing; raises SystemExit if one is empty.
    """
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
        "--engine-hosts",
        default=",".join(LOOPBACK),
        help="where replicas may be: host, host:port, .domain or network, separated by commas",
    )
    parser.add_argument("--connections", type=int, default=4096, help="connections that are kept open at once")
    parser.add_argument(
        "--connections-per-address", type=int, default=512, help="of one address, but a proxy's; 0 = no limit"
    )
    parser.add_argument(
        "--proxies", default="", help="addresses or networks of proxies, which many callers share, separated by commas"
    )
    parser.add_argument(
        "--table-max-age-s", type=float, default=MAX_AGE_S, help="seconds for which a routing table is served from"
    )
    parser.add_argument(
        "--metrics-token-file",
        type=Path,
        help="file with the bearer token of /metrics, made if it is missing; without it /metrics names no alias",
    )
    parser.add_argument(
        "--secret-file",
        type=Path,
        help="file of the secret that the control plane seals engines' API keys with; made if it is missing",
    )
    parser.add_argument(
        "--keep-alive-s",
        type=int,
        default=KEEP_ALIVE_S,
        help="seconds for which an idle connection is kept; a front must close its own ones earlier",
    )
    log_lines.add_option(parser)
    arguments = parser.parse_args()
    log_lines.start("%(levelname)s %(name)s %(message)s", arguments.log_format)
    logging.getLogger().handlers[0].addFilter(OnceAMinute())
    telemetry.start("router")
    # Objects made so far live to the end, and a request's objects die young; a full collection would stop all requests.
    gc.freeze()
    gc.set_threshold(50_000, 50, 100)
    try:
        token = kept_secret(arguments.metrics_token_file) if arguments.metrics_token_file else None
        secret = kept_secret(arguments.secret_file) if arguments.secret_file else ""
    except ValueError as error:
        raise SystemExit(str(error)) from None
    settings = Settings(
        arguments.redis_url,
        arguments.snapshot,
        arguments.spool,
        arguments.load_deadline_s,
        tuple(words(arguments.hosts)),
        arguments.table_max_age_s,
        token,
        tuple(words(arguments.engine_hosts)),
        secret,
    )
    uvicorn.run(
        make_app(settings),
        host=arguments.host,
        port=arguments.port,
        http=BoundedConnection.within(
            Connections(
                bounded_by_files(arguments.connections), arguments.connections_per_address, words(arguments.proxies)
            )
        ),
        ws="none",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=arguments.keep_alive_s,
        timeout_graceful_shutdown=30,
        log_config=None,
    )


def words(text: str) -> list[str]:
    """Split a comma-separated list; empty entries are left out."""
    return [word.strip() for word in text.split(",") if word.strip()]


if __name__ == "__main__":
    main()
