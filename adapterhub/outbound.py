"""HTTP requests to addresses that users entered: https only, allowed hosts only, resolved once, no redirects.

The connection goes to the address that was checked, with the host name only in TLS and the Host header; a name server
that answers differently the second time (DNS rebinding) has no effect.
"""

from __future__ import annotations

import ipaddress
import re
import socket
import ssl
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Self
from urllib.parse import urlsplit, urlunsplit

import httpx

from serving_client.engine_hosts import addresses, is_listed, may_be_listed, target_of

TIMEOUT_S = 10.0
LONGEST_S, MOST_BYTES = 30.0, 2**18  # of a request with its answer; of an answer that is read
# NAT64 (RFC 6052, 8215) and IPv4-compatible (RFC 4291) addresses, which end with an IPv4 address.
LAST_32_BITS = [ipaddress.IPv6Network(net) for net in ("64:ff9b::/96", "64:ff9b:1::/48", "::/96")]


# The path of an engine. What begins with a dot or is escaped has another spelling, under which one engine would be two.
ENGINE_PATH = re.compile(r"(?:/[A-Za-z0-9_~-][A-Za-z0-9_.~-]*)*")


class Forbidden(ValueError):
    """Raised for an address to which requests may not go; the message names it and the reason."""


def pinned(url: str, allowed: Iterable[str], *, may_be_inside: bool = False) -> tuple[str, str]:
    """Return the https URL with its host name resolved to a public address, and the host name.

    `allowed` are host names. `may_be_inside` permits an address in the own network; only for hosts that operators set.
    Raises Forbidden for another scheme or host, a user name in the URL, and an address that is missing or not
    permitted.
    """
    parts = urlsplit(url)
    try:
        port = parts.port or 443
    except ValueError:
        raise Forbidden(f"{url!r} has an invalid port: use one from 1 to 65535, or none.") from None
    host = (parts.hostname or "").rstrip(".").lower()
    if parts.scheme != "https" or not host or parts.username or parts.password:
        raise Forbidden(f"{url!r} must be https://host/path without a user name.")
    if host not in {name.lower() for name in allowed}:
        raise Forbidden(f"The host {host!r} is not in the allow-list: ask an operator to add it.")
    address = resolve(host, port, may_be_inside=may_be_inside)
    literal = f"[{address}]" if ":" in address else address
    return urlunsplit(("https", f"{literal}:{port}", parts.path or "/", parts.query, "")), host


def require_engine(url: str, allowed: Iterable[str]) -> list[str]:
    """Return the endpoints of a replica's address: each resolved address with port and path, sorted.

    `allowed` are hosts, hosts with a port, domains (`.engines.example`), and networks, in which every address must lie.
    An engine may be in the own network and speak http, for an operator listed it; a link-local address, where clouds
    keep their credentials, must be listed itself. Raises Forbidden if the list does not allow it; the error does not
    reveal to what a name resolves.
    """
    if (target := target_of(url)) is None:
        raise Forbidden(f"{url!r} must be http://host:port or https://host:port without a user name.")
    parts = urlsplit(url)
    if parts.query or parts.fragment or not ENGINE_PATH.fullmatch(parts.path.rstrip("/")):
        raise Forbidden(f"{url!r} must have no query, and a path of plain names such as /engine, or none.")
    host, port = target
    entries = [entry.lower() for entry in allowed]
    # A name that nobody listed is not looked up: its name server would be asked, and might take its time.
    resolved = addresses(host, port) if may_be_listed(host, port, entries) else set()
    if not is_listed(host, port, resolved, entries):
        raise Forbidden(
            f"An engine at {host}:{port} is not allowed: ask an operator to add it to ADAPTERHUB_ENGINE_HOSTS."
        )
    return sorted({f"{canonical(address)}:{port}{parts.path.rstrip('/')}" for address in resolved})


def canonical(address: str) -> str:
    """Return the address, or `this machine` for one of its own: loopback, unspecified, or of an interface."""
    ip = ipaddress.ip_address(address)
    ip = getattr(ip, "ipv4_mapped", None) or ip
    family = socket.AF_INET if ip.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((str(ip), 0))
        return "this machine"
    except OSError:
        return "this machine" if ip.is_loopback else str(ip)


def resolve(host: str, port: int, *, may_be_inside: bool = False) -> str:
    """Return the lowest of the host's addresses.

    Raises Forbidden if it has none, or if one of them is not public and `may_be_inside` is False.
    """
    try:
        addresses = {info[4][0] for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
    except OSError as error:
        raise Forbidden(f"The host {host!r} has no address: check its name.") from error
    if not may_be_inside and (hidden := [address for address in addresses if not is_public(str(address))]):
        raise Forbidden(f"The host {host!r} resolves to {hidden[0]}, which is not a public address.")
    return str(min(addresses))


def is_public(address: str) -> bool:
    """Return False for loopback, private, link-local, multicast and reserved addresses, also when wrapped in IPv6."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    return all(one.is_global and not one.is_multicast for one in (ip, *wrapped(ip)))


def wrapped(ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> list[ipaddress.IPv4Address]:
    """Return the IPv4 addresses embedded in an IPv6 address: mapped, 6to4, Teredo, NAT64 or IPv4-compatible."""
    if isinstance(ip, ipaddress.IPv4Address):
        return []
    inside = [ip.ipv4_mapped, ip.sixtofour, *(ip.teredo or ())]
    if any(ip in net for net in LAST_32_BITS):
        inside.append(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF))
    return [one for one in inside if one]


def post(url: str, body: bytes, *, allowed: Iterable[str], headers: dict[str, str] | None = None, **client: Any) -> int:
    """Send a POST to an allowed host and return the response's status; redirects are not followed.

    Raises Forbidden for an address that is not allowed, and httpx.HTTPError if the request fails.
    """
    with sent(pinned(url, allowed), body, headers, **client) as answer:
        return answer.status_code


def ask(url: str, body: bytes, *, host: str, headers: dict[str, str], **client: Any) -> tuple[int, bytes]:
    """Send a POST to a host that an operator set; return the status and the content of the response.

    Raises Forbidden for another address, and httpx.HTTPError if the request fails or the response has over MOST_BYTES
    or takes over LONGEST_S seconds.
    """
    end = time.monotonic() + LONGEST_S
    with sent(pinned(url, [host], may_be_inside=True), body, headers, **client) as answer:
        content = b""
        for part in answer.iter_bytes():
            content += part
            if len(content) > MOST_BYTES or time.monotonic() > end:
                raise httpx.ReadTimeout("The response is too long.")
        return answer.status_code, content


def trusting(certificates: str) -> ssl.SSLContext:
    """Return a TLS context that trusts public authorities and, if a file in PEM is named, those in it."""
    context = ssl.create_default_context()
    if certificates:
        context.load_verify_locations(certificates)
    return context


@contextmanager
def sent(
    target: tuple[str, str], body: bytes, headers: dict[str, str] | None, **client: Any
) -> Iterator[httpx.Response]:
    """Send a POST to `target`, a URL with the checked address and the host name; yield the response while it streams.

    Redirects are not followed, and after LONGEST_S seconds the connection is cut. Raises httpx.HTTPError.
    """
    url, host = target
    headers = {**(headers or {}), "Host": host}
    with (
        Deadline(LONGEST_S) as deadline,
        httpx.Client(timeout=TIMEOUT_S, follow_redirects=False, trust_env=False, **client) as session,
        session.stream(
            "POST", url, content=body, headers=headers, extensions={"sni_hostname": host, "trace": deadline.trace}
        ) as answer,
    ):
        yield answer


class Deadline:
    """A context manager that cuts off a connection after so many seconds, however slowly the other side goes on.

    The time-outs of the client hold for a single read: who sends a byte each time would keep a worker for days.
    """

    def __init__(self, seconds: float) -> None:
        self._timer = threading.Timer(seconds, self._cut)
        self._timer.daemon = True
        self._connection: socket.socket | None = None

    def __enter__(self) -> Self:
        """Start the time."""
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End the time."""
        self._timer.cancel()
        if self._connection:
            self._connection.close()

    def trace(self, event: str, info: dict[str, Any]) -> None:
        """Note the connection, as an extension of httpcore's requests."""
        if event == "connection.connect_tcp.complete":
            # TLS takes over the socket itself.
            self._connection = info["return_value"].get_extra_info("socket").dup()

    def _cut(self) -> None:
        if self._connection:
            with suppress(OSError):
                self._connection.shutdown(socket.SHUT_RDWR)
