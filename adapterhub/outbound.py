"""Requests to addresses that somebody typed in: https, an allow-list, one look-up that is kept, no redirects.

The address is resolved once and the connection goes to just that address, with the name only in TLS and the Host
header; a name server that answers differently the second time has no effect.
"""

from __future__ import annotations

import ipaddress
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import httpx

TIMEOUT_S = 10.0
LONGEST_S, MOST_BYTES = 30.0, 2**18  # of an answer that is read
# NAT64 (RFC 6052, 8215) and IPv4-compatible (RFC 4291) addresses end with the IPv4 address that is meant.
LAST_32_BITS = [ipaddress.IPv6Network(net) for net in ("64:ff9b::/96", "64:ff9b:1::/48", "::/96")]


class Forbidden(ValueError):
    """The address may not be asked; the message names it and the reason."""


def pinned(url: str, allowed: Iterable[str], *, may_be_inside: bool = False) -> tuple[str, str]:
    """The URL with a public address in place of its name, and that name. Raises Forbidden.

    `allowed` are host names. Only what an operator set may lie in the own network.
    """
    parts = urlsplit(url)
    try:
        port = parts.port or 443
    except ValueError:
        raise Forbidden(f"{url!r} has a port that is no port: write one from 1 to 65535, or none.") from None
    host = (parts.hostname or "").rstrip(".").lower()
    if parts.scheme != "https" or not host or parts.username or parts.password:
        raise Forbidden(f"{url!r} must be https://host/path without a user name.")
    if host not in {name.lower() for name in allowed}:
        raise Forbidden(f"The host {host!r} is not in the allow-list: ask an operator to add it.")
    address = resolve(host, port, may_be_inside=may_be_inside)
    shown = f"[{address}]" if ":" in address else address
    return urlunsplit(("https", f"{shown}:{port}", parts.path or "/", parts.query, "")), host


def resolve(host: str, port: int, *, may_be_inside: bool = False) -> str:
    """The first address of the host, if none of its addresses is private, local or reserved. Raises Forbidden."""
    try:
        found = {info[4][0] for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
    except OSError as error:
        raise Forbidden(f"The host {host!r} has no address.") from error
    if not may_be_inside and (hidden := [address for address in found if not is_public(str(address))]):
        raise Forbidden(f"The host {host!r} lies at {hidden[0]}, which is no public address.")
    return str(min(found))


def is_public(address: str) -> bool:
    """False for loopback, private, link-local, multicast and reserved ones, also when IPv6 wraps them."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    return all(one.is_global and not one.is_multicast for one in (ip, *wrapped(ip)))


def wrapped(ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> list[ipaddress.IPv4Address]:
    """The IPv4 addresses that an IPv6 address leads to: mapped, 6to4, Teredo, NAT64, and the old compatible form."""
    if isinstance(ip, ipaddress.IPv4Address):
        return []
    inside = [ip.ipv4_mapped, ip.sixtofour, *(ip.teredo or ())]
    if any(ip in net for net in LAST_32_BITS):
        inside.append(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF))
    return [one for one in inside if one]


def post(url: str, body: bytes, *, allowed: Iterable[str], headers: dict[str, str] | None = None,
         **client: Any) -> int:  # fmt: skip
    """Send the body; returns the status of the answer. A redirect is an answer like others. Raises Forbidden."""
    with sent(pinned(url, allowed), body, headers, **client) as answer:
        return answer.status_code


def ask(url: str, body: bytes, *, host: str, headers: dict[str, str], **client: Any) -> tuple[int, bytes]:
    """Status and content of the answer of a host that an operator set. Raises Forbidden, and httpx.HTTPError also for
    an answer that is too long or takes too long."""
    end = time.monotonic() + LONGEST_S
    with sent(pinned(url, [host], may_be_inside=True), body, headers, **client) as answer:
        content = b""
        for part in answer.iter_bytes():
            content += part
            if len(content) > MOST_BYTES or time.monotonic() > end:
                raise httpx.ReadTimeout("The answer is too long.")
        return answer.status_code, content


@contextmanager
def sent(
    target: tuple[str, str], body: bytes, headers: dict[str, str] | None, **client: Any
) -> Iterator[httpx.Response]:
    """The answer while it comes, from the address that was looked up."""
    url, host = target
    headers = {**(headers or {}), "Host": host}
    with (
        httpx.Client(timeout=TIMEOUT_S, follow_redirects=False, trust_env=False, **client) as session,
        session.stream("POST", url, content=body, headers=headers, extensions={"sni_hostname": host}) as answer,
    ):
        yield answer
