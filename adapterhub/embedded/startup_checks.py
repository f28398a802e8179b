"""Checks that run before anything starts, so that a failed start leaves nothing behind. Each raises StartError."""

from __future__ import annotations

import re
import shutil
import socket
import time
from collections.abc import Sequence
from pathlib import Path

import psycopg
import redis

from adapterhub.embedded.exceptions import StartError

LEAST_FREE_BYTES = 200 * 1000 * 1000
PORT_WAIT_S = 3.0
CONNECT_S = 5


def redacted(url: str) -> str:
    """Return the URL with `****` in place of its password, before the host and in the query's `password`."""
    url = re.sub(r"(?<=://)([^:/@]*):.*@", r"\1:***@", url)
    return re.sub(r"(?<=[?&]password=)[^&]*", "***", url)


def check_database(variable: str, url: str) -> None:
    """Raise StartError unless the URL is one of Postgres and a session can be opened with it."""
    fix = f"correct {variable}, or unset it to use the embedded Postgres."
    if not re.match(r"postgres(ql)?://", url):
        raise StartError(f"{variable}={redacted(url)!r} is not a postgres:// URL: {fix}")
    try:
        psycopg.connect(url, connect_timeout=CONNECT_S).close()
    except psycopg.OperationalError as refused:
        raise StartError(f"{variable}={redacted(url)} cannot be reached ({_reason(refused, url)}): {fix}") from None
    except psycopg.Error:
        # Its text may quote a part of the password.
        raise StartError(f"{variable}={redacted(url)!r} cannot be read as a URL: {fix}") from None


def check_redis(url: str) -> None:
    """Raise StartError unless the URL is one of Valkey or Redis and the server answers PING."""
    fix = "correct REDIS_URL, or unset it to use the embedded Valkey."
    try:
        with redis.Redis.from_url(url, socket_connect_timeout=CONNECT_S, socket_timeout=CONNECT_S) as client:
            client.ping()
    except ValueError:
        raise StartError(f"REDIS_URL={redacted(url)!r} is not a redis://, rediss:// or unix:// URL: {fix}") from None
    except redis.RedisError as refused:
        raise StartError(f"REDIS_URL={redacted(url)} cannot be reached ({_reason(refused, url)}): {fix}") from None


def check_space(home: Path) -> None:
    """Raise StartError unless the disk has LEAST_FREE_BYTES free for the databases and the logs."""
    folder = next(part for part in (home, *home.parents) if part.exists())
    free = shutil.disk_usage(folder).free
    if free < LEAST_FREE_BYTES:
        raise StartError(
            f"The disk of {home} has only {free // 1_000_000} MB free and AdapterHub needs "
            f"{LEAST_FREE_BYTES // 1_000_000} MB: free some space, or set ADAPTERHUB_HOME to a folder on another disk."
        )


def check_ports(host: str, ports: Sequence[tuple[str, int]]) -> None:
    """Raise StartError unless every port of the host is free and none is used twice. `ports` are (variable, port).

    A port that is taken is tried again for PORT_WAIT_S seconds.
    """
    _check_host(host)
    users_of_port: dict[int, str] = {}
    for variable, port in ports:
        if port in users_of_port:
            raise StartError(
                f"{variable} and {users_of_port[port]} both use port {port}: set {variable} to another one."
            )
        users_of_port[port] = variable
        _check_port(host, variable, port)


def _check_host(host: str) -> None:
    if refused := _refusal(host, 0):
        raise StartError(
            f"ADAPTERHUB_HOST={host!r} is not an address of this machine ({refused}): "
            "set it to 127.0.0.1, or to 0.0.0.0 for all addresses."
        )


def _check_port(host: str, variable: str, port: int) -> None:
    """Check that the port is free, waiting up to 3 s: after kill -9 the old children take a moment to end."""
    deadline = time.monotonic() + PORT_WAIT_S
    while refused := _refusal(host, port):
        if time.monotonic() > deadline:
            raise StartError(
                f"Port {port} of {host} cannot be used ({refused}): end the program that listens there, "
                f"or set {variable} to another port."
            )
        time.sleep(0.2)


def _refusal(host: str, port: int) -> str:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(1)
    except (OSError, OverflowError) as refused:
        return (refused.strerror if isinstance(refused, OSError) else None) or str(refused)
    return ""


def _reason(refused: Exception, url: str) -> str:
    """Return the first line of the driver's message, with the password removed, which the message may quote."""
    password = re.search(r"://[^:/@]*:(.*)@", url)
    if password and re.search(r"[@/:?#]", password[1]):
        return "its password holds characters that must be percent-encoded"
    first = str(refused).strip().partition("\n")[0]
    return first.replace(password[1], "***") if password and password[1] else first
