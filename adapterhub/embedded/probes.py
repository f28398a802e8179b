"""Readiness probes of processes."""

from __future__ import annotations

import http.client
from dataclasses import dataclass
from typing import Protocol

import psycopg
import redis

TIMEOUT_S = 1.0


class Probe(Protocol):
    """The interface of a readiness probe."""

    def answers(self) -> bool:
        """Return True if the process is ready."""


@dataclass(frozen=True)
class HttpProbe:
    """A probe that expects status 200 of a GET request."""

    host: str
    port: int
    path: str

    def answers(self) -> bool:
        """Return True if the path answers with 200."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=TIMEOUT_S)
        try:
            connection.request("GET", self.path)
            return connection.getresponse().status == http.HTTPStatus.OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()


@dataclass(frozen=True)
class LogProbe:
    """A probe that waits for a log line with the text; the reader of the child's log searches for it."""

    text: str


@dataclass(frozen=True)
class PostgresProbe:
    """A probe that tries to open a session of Postgres."""

    url: str

    def answers(self) -> bool:
        """Return True if Postgres accepts a connection."""
        try:
            psycopg.connect(self.url, connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True


@dataclass(frozen=True)
class ValkeyProbe:
    """A probe that expects an answer to PING, which Valkey gives once its data are loaded."""

    url: str

    def answers(self) -> bool:
        """Return True if Valkey answers a ping."""
        try:
            with redis.Redis.from_url(self.url, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S) as client:
                return bool(client.ping())
        except redis.RedisError:
            return False
