"""Check of engines' addresses against the operator's list of hosts, for the control plane and the routers.

An entry of the list is host, host:port, .domain or a network such as 10.0.0.0/8.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from collections.abc import Sequence
from urllib.parse import urlsplit


def target_of(url: str) -> tuple[str, int] | None:
    """Return (host, port) of an engine's URL, whatever its path; the host is in lower case.

    A port that is left out is 80 or 443, by the scheme. Returns None if the URL is not http or https, has no host, or
    has a user name or password. Raises ValueError for a port that is no number up to 65535.
    """
    parts = urlsplit(url)
    host, port = (parts.hostname or "").rstrip(".").lower(), parts.port or (443 if parts.scheme == "https" else 80)
    if parts.scheme not in ("http", "https") or not host or parts.username or parts.password:
        return None
    return host, port


def normalised(url: str) -> str:
    """Return the one spelling of an engine's URL: lower-case host, no default port, no dot or slash at the end.

    A user name, a password, a query and a fragment are dropped. Raises ValueError for an invalid port.
    """
    parts = urlsplit(url.strip())
    scheme, host = parts.scheme.lower(), (parts.hostname or "").rstrip(".").lower()
    with contextlib.suppress(ValueError):
        host = str(ipaddress.ip_address(host))
    literal = f"[{host}]" if ":" in host else host
    port = f":{parts.port}" if parts.port not in (None, {"http": 80, "https": 443}.get(scheme)) else ""
    return f"{scheme}://{literal}{port}{parts.path.rstrip('/')}"


def addresses(host: str, port: int) -> set[str]:
    """Resolve the host to all its IP addresses; the set is empty if the name has none now."""
    try:
        return {str(info[4][0]).partition("%")[0] for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError):
        return set()


def may_be_listed(host: str, port: int, allowed: Sequence[str]) -> bool:
    """Return False if no entry can list the host whatever it resolves to, so that it need not be resolved."""
    return bool(naming(host, port, allowed)) or any("/" in entry for entry in allowed)


def naming(host: str, port: int, allowed: Sequence[str]) -> list[str]:
    """Return the entries of `allowed` that name the host, the host with this port, or a domain above it."""
    literal = f"[{host}]" if ":" in host else host
    names = {host, literal, f"{literal}:{port}"}
    return [entry for entry in allowed if entry in names or (entry.startswith(".") and host.endswith(entry))]


def is_listed(host: str, port: int, resolved: set[str], allowed: Sequence[str]) -> bool:
    """Return True if `allowed` names the host or a domain above it, or if all its addresses lie in listed networks.

    `resolved` holds its addresses. A named host with a link-local or multicast address is refused, unless the entry is
    the address itself.
    """
    ips = [ipaddress.ip_address(address) for address in resolved]
    if naming(host, port, allowed):
        return host in resolved or not any(ip.is_link_local or ip.is_multicast for ip in ips)
    networks = [ipaddress.ip_network(entry, strict=False) for entry in allowed if "/" in entry]
    return bool(ips) and all(any(ip in net for net in networks) for ip in ips)
