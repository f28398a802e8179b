"""Replicas by DNS: every address behind a name, or behind the targets of a service."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import dns.exception
import dns.resolver

from registry.replica_sources.address import Kind, Source, url_of

# Seconds for one question, however many servers are asked.
LIFETIME_S = 5.0


class LookupFailed(Exception):
    """Raised when a source does not answer: what replicas there are is not known then."""


class Dns:
    """Queries to the DNS servers at `servers` (`address` or `address:port`); without any, to those of this machine."""

    def __init__(self, servers: Sequence[str] = ()) -> None:
        self._resolver = dns.resolver.Resolver(configure=not servers)
        self._resolver.lifetime = LIFETIME_S
        # A replica that went must not be found for as long as a stranger's time to live says.
        self._resolver.cache = None
        if servers:
            parts = [server.rpartition(":") if server.count(":") == 1 else ("", "", server) for server in servers]
            self._resolver.nameservers = [host or last for host, _, last in parts]
            ports = {host: int(port) for host, _, port in parts if host}
            self._resolver.nameserver_ports = ports

    def urls(self, source: Source) -> list[str]:
        """Return the URL of each replica, sorted; none for a name that does not exist.

        Raises LookupFailed if no server answers, or one answers with an error.
        """
        if source.kind is Kind.DNS:
            return sorted({url_of(address, int(source.port)) for address in self._addresses(source.name)})
        targets = [(str(record.target), record.port) for record in self._ask(source.name, "SRV")]
        return sorted({url_of(address, port) for host, port in targets for address in self._addresses(host)})

    def _addresses(self, host: str) -> Iterator[str]:
        for kind in ("A", "AAAA"):
            for record in self._ask(host, kind):
                yield record.address

    def _ask(self, name: str, kind: str) -> list[Any]:
        try:
            return list(self._resolver.resolve(name, kind, search=False))
        except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer):
            return []
        except dns.exception.DNSException as error:
            raise LookupFailed(f"DNS does not tell {kind} of {name}: {error}") from error
