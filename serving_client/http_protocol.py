"""uvicorn's HTTP/1.1 with bounds that uvicorn lacks: of a request's head, of a stalled answer, and of connections."""

from __future__ import annotations

import asyncio
import resource
from collections import Counter
from collections.abc import Sequence
from ipaddress import ip_address, ip_network
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_S = 10.0
MOST_HEAD_BYTES = 2**16
STALL_S = 120.0
TOO_LATE = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
TOO_LONG = b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


TOO_MANY = b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\nretry-after: 5\r\ncontent-length: 0\r\n\r\n"


# Files that a process opens besides: its log, its database, Valkey.
OTHER_FILES = 256


def bounded_by_files(most: int) -> int:
    """Raise the process' limit of open files if allowed; return how many connections there is room for, 1 to `most`.

    Two files are counted for each: a request that is passed on, or that reads a file, takes a second one.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * most + OTHER_FILES
    if soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return max(1, min(most, (soft - OTHER_FILES) // 2))


class Connections:
    """The open connections of a process, at most `most` in all and `most_of_one` of one address.

    `proxies` are addresses or networks whose connections stand for many callers: only the bound in all holds for them.
    0 is no bound. Of IPv6 the /64 network counts as one address, all of which one caller may have.
    """

    def __init__(self, most: int = 0, most_of_one: int = 0, proxies: Sequence[str] = ()) -> None:
        self._most, self._most_of_one = most, most_of_one
        self._proxies = [ip_network(proxy) for proxy in proxies]
        self._count, self._by_address = 0, Counter[str]()
        # Connections that await a request, the longest first.
        self._idle: dict[BoundedConnection, None] = {}

    def admit(self, connection: BoundedConnection) -> bool:
        """Count a connection and return True; return False if its address has too many, or there is no room.

        Where all places are taken, a connection that awaits a request is closed to make room.
        """
        address = connection.address
        if self._most_of_one and not self._is_proxy(address) and self._by_address[address] >= self._most_of_one:
            return False
        if self._most and self._count >= self._most:
            if not self._idle:
                return False
            next(iter(self._idle)).give_way()
        self._count += 1
        self._by_address[address] += 1
        return True

    def leave(self, connection: BoundedConnection) -> None:
        """Remove an admitted connection from the counts."""
        self._idle.pop(connection, None)
        self._count -= 1
        self._by_address[connection.address] -= 1
        if not self._by_address[connection.address]:
            del self._by_address[connection.address]

    def is_idle(self, connection: BoundedConnection) -> None:
        """Mark the connection as one that awaits a request: `admit` may close it to make room."""
        self._idle[connection] = None

    def is_busy(self, connection: BoundedConnection) -> None:
        """Mark the connection as one that has a request: `admit` does not close it."""
        self._idle.pop(connection, None)

    def _is_proxy(self, address: str) -> bool:
        # Connections of a Unix socket have no address; whoever may open it is trusted as a proxy is.
        return not address or any(ip_network(address).overlaps(proxy) for proxy in self._proxies)


class BoundedConnection(HttpToolsProtocol):
    """A connection that is closed if its caller is too slow or sends too long a head.

    A head may take `head_s` seconds (else it is answered 408) and MOST_HEAD_BYTES (else 431). An answer may take any
    time, but is aborted if what waits to be sent is not read within `stall_s` seconds.
    """

    head_s, stall_s = HEAD_S, STALL_S
    open_connections = Connections()
    address = ""
    _deadline: asyncio.TimerHandle | None = None
    _stalled: asyncio.TimerHandle | None = None
    _head_bytes = 0
    _is_counted = False

    @classmethod
    def within(cls, connections: Connections) -> type[BoundedConnection]:
        """Return a subclass, for uvicorn's option `http`, whose connections `connections` counts and bounds."""
        return type(cls.__name__, (cls,), {"open_connections": connections})

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Count the connection and start the deadline of the first head; without room, answer 503 and close it."""
        super().connection_made(transport)
        self.address = network_of(transport.get_extra_info("peername"))
        self._is_counted = self.open_connections.admit(self)
        if self._is_counted:
            self.open_connections.is_idle(self)
            self._await_head()
        else:
            self._end(TOO_MANY)

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the deadlines and remove the connection from the counts."""
        self._stop_waiting()
        self.resume_writing()
        self._leave()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        """Start the deadline of the next head."""
        super().on_message_begin()
        self._head_bytes = 0
        self._await_head()

    def on_headers_complete(self) -> None:
        """Cancel the head's deadline and note that the connection is busy."""
        self._stop_waiting()
        self.open_connections.is_busy(self)
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        """Note that the connection awaits its next request, if it is kept alive."""
        super().on_response_complete()
        if self._is_counted and self.timeout_keep_alive_task:
            self.open_connections.is_idle(self)

    def data_received(self, data: bytes) -> None:
        """Pass the bytes on; answer 431 and close if a head has more than MOST_HEAD_BYTES."""
        if self.transport.is_closing():
            return
        super().data_received(data)
        if self._deadline:
            self._head_bytes += len(data)
            if self._head_bytes > MOST_HEAD_BYTES:
                self._end(TOO_LONG)

    def pause_writing(self) -> None:
        """Start the deadline by which the caller must read what was sent, or the connection is aborted."""
        super().pause_writing()
        if self._stalled is None:
            self._stalled = self.loop.call_later(self.stall_s, self.transport.abort)

    def resume_writing(self) -> None:
        """Cancel the deadline that `pause_writing` started: the caller reads again."""
        if self._stalled:
            self._stalled.cancel()
            self._stalled = None
        super().resume_writing()

    def give_way(self) -> None:
        """Close this connection, which awaits a request, to make room for another one.

        It is answered 503 first if a part of a head has arrived.
        """
        self._leave()
        self._end(TOO_MANY if self._head_bytes else b"")

    def _leave(self) -> None:
        if self._is_counted:
            self._is_counted = False
            self.open_connections.leave(self)

    def _await_head(self) -> None:
        # The first request's time runs from the connection, also where no byte comes.
        if self._deadline is None:
            self._deadline = self.loop.call_later(self.head_s, self._end, TOO_LATE)

    def _stop_waiting(self) -> None:
        if self._deadline:
            self._deadline.cancel()
            self._deadline = None

    def _end(self, answer: bytes) -> None:
        self._stop_waiting()
        if not self.transport.is_closing():
            self.transport.write(answer)
            self.transport.close()


def network_of(peer: Any) -> str:
    """Return the IP address of a socket's peer as text, of IPv6 the /64 network; "" for one without an IP address.

    `peer` is (host, port, ...) as sockets give it, or None. An IPv4 address that is mapped to IPv6 counts as IPv4.
    """
    try:
        ip = ip_address(str(peer[0]).partition("%")[0])
    except (TypeError, IndexError, ValueError):
        return ""
    ip = getattr(ip, "ipv4_mapped", None) or ip
    return str(ip_network(f"{ip}/64", strict=False)) if ip.version == 6 else str(ip)
