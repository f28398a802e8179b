"""Requests to addresses that somebody typed in: https, an allow-list, one look-up that is kept, no redirects.

The address is resolved once and the connection goes to just that address, with the name only in TLS and the Host
header; a name server that answers differently the second time has no effect.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import httpx

TIMEOUT_S = 10.0


class Forbidden(ValueError):
    """The address may not be asked; the message names it and the reason."""


def pinned(url: str, allowed: Iterable[str]) -> tuple[str, str]:
    """The URL with a public address in place of its name, and that name. Raises Forbidden.

    `allowed` are host names.
    """
    parts = urlsplit(url)
    host = (parts.hostname or "").rstrip(".").lower()
    if parts.scheme != "https" or not host or parts.username or parts.password:
        raise Forbidden(f"{url!r} must be https://host/path without a user name.")
    if host not in {name.lower() for name in allowed}:
        raise Forbidden(f"The host {host!r} is not in the allow-list: ask an operator to add it.")
    port = parts.port or 443
    address = resolve(host, port)
    shown = f"[{address}]" if ":" in address else address
    return urlunsplit(("https", f"{shown}:{port}", parts.path or "/", parts.query, "")), host


def resolve(host: str, port: int) -> str:
    """The first address of the host, if none of its addresses is private, local or reserved. Raises Forbidden."""
    try:
        found = {info[4][0] for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
    except OSError as error:
        raise Forbidden(f"The host {host!r} has no address.") from error
    if hidden := [address for address in found if not is_public(str(address))]:
        raise Forbidden(f"The host {host!r} lies at {hidden[0]}, which is no public address.")
    return str(min(found))


def is_public(address: str) -> bool:
    """False for loopback, private, link-local, multicast and reserved ones, also when IPv6 wraps them."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    inner = getattr(ip, "ipv4_mapped", None) or getattr(ip, "sixtofour", None) or ip
    return inner.is_global and not inner.is_multicast


def post(url: str, body: bytes, *, allowed: Iterable[str], headers: dict[str, str] | None = None,
         **client: Any) -> int:  # fmt: skip
    """Send the body; returns the status of the answer. A redirect is an answer like others. Raises Forbidden."""
    target, host = pinned(url, allowed)
    sent = {**(headers or {}), "Host": host}
    with (
        httpx.Client(timeout=TIMEOUT_S, follow_redirects=False, trust_env=False, **client) as session,
        session.stream("POST", target, content=body, headers=sent, extensions={"sni_hostname": host}) as answer,
    ):
        return answer.status_code
