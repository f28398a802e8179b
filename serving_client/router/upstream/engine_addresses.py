"""Check of each connection that the router opens to a replica against the operator's list of engine hosts."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from ipaddress import ip_address

from aiohttp import DefaultResolver
from aiohttp.abc import AbstractResolver, ResolveResult

from serving_client.engine_hosts import is_listed, target_of


class NotListed(OSError):
    """A connection to an address that no operator listed."""


class EngineAddresses(AbstractResolver):
    """Resolver of replicas' names that returns only listed addresses; the connection then goes to one of these."""

    def __init__(self, allowed: Sequence[str]) -> None:
        self._allowed = [entry.lower() for entry in allowed]
        self._resolver: AbstractResolver | None = None

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Return the addresses of a host name. Raises NotListed if the list lacks it, OSError if it has none."""
        if self._resolver is None:
            self._resolver = DefaultResolver()
        results = await self._resolver.resolve(host, port, family)
        if not is_listed(host.rstrip(".").lower(), port, {result["host"] for result in results}, self._allowed):
            raise NotListed(f"{host}:{port} is not among the engines' hosts.")
        return results

    def may_be_asked(self, url: str) -> bool:
        """Return False for a malformed URL or an IP address that is not listed; True for a name.

        Names are checked by `resolve`.
        """
        try:
            target = target_of(url)
        except ValueError:
            return False
        if target is None:
            return False
        host, port = target
        try:
            literal = str(ip_address(host))
        except ValueError:
            return True
        return is_listed(host, port, {literal}, self._allowed)

    async def close(self) -> None:
        """Close the resolver."""
        if self._resolver:
            await self._resolver.close()
