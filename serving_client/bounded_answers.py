"""HTTP connections whose timeout bounds a whole answer.

The timeout of a socket holds for one read: a peer that sends a byte each second would keep its reader for ever.
"""

from __future__ import annotations

import http.client
import io
import socket
import time
from typing import Any

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection


class BoundedReader(io.RawIOBase):
    """The bytes of a socket up to the moment `end` (of time.monotonic()); a later read raises TimeoutError."""

    def __init__(self, raw: io.RawIOBase, sock: socket.socket, end: float) -> None:
        self._raw, self._sock, self._end = raw, sock, end

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int | None:
        """Read into the buffer and return the number of bytes, 0 at the end of the stream.

        Raises TimeoutError if `end` has passed, or passes before a byte comes.
        """
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError("the answer takes too long")
        self._sock.settimeout(left)
        return self._raw.readinto(buffer)

    def close(self) -> None:
        """Close the stream; the socket stays open for a connection that uses it again."""
        super().close()
        self._raw.close()


class BoundedResponse(http.client.HTTPResponse):
    """An HTTP response whose head and body together must arrive within the socket's timeout, from its creation on.

    Reads after that raise TimeoutError; a socket without a timeout sets no bound.
    """

    def __init__(self, sock: socket.socket, *args: Any, **options: Any) -> None:
        super().__init__(sock, *args, **options)
        if timeout_s := sock.gettimeout():
            raw: Any = self.fp.detach()
            self.fp = io.BufferedReader(BoundedReader(raw, sock, time.monotonic() + timeout_s))


class BoundedHTTPConnection(HTTPConnection):
    """A connection whose timeout bounds each whole answer."""

    response_class = BoundedResponse


class BoundedHTTPSConnection(HTTPSConnection):
    """A connection over TLS whose timeout bounds each whole answer."""

    response_class = BoundedResponse


def bounded_pool(url: str, **options: Any) -> urllib3.HTTPConnectionPool:
    """Return a pool of connections to the URL's host whose `timeout`, in seconds, bounds each whole answer.

    `options` are those of urllib3's `connection_from_url`, `timeout` among them.
    """
    pool = urllib3.connection_from_url(url, **options)
    pool.ConnectionCls = BoundedHTTPSConnection if url.startswith("https:") else BoundedHTTPConnection
    return pool
