"""Check of the Host header against the names of the router; protects against DNS rebinding by web pages."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from serving_client.router.errors import Refusal

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


class KnownHosts:
    """Middleware that answers 400 to `/v1/` requests whose Host header is not in `hosts`; other paths are open."""

    def __init__(self, app: ASGIApp, hosts: Sequence[str]) -> None:
        self.app = app
        self.hosts = frozenset(host.lower() for host in hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse API requests under a host name that is not configured."""
        if scope["type"] == "http" and scope["path"].startswith("/v1/"):
            host = name_in(Headers(scope=scope).get("host", ""))
            if host not in self.hosts:
                refusal = Refusal(400, "unknown_host", f"This router does not answer to {host[:200]!r}: see --hosts.")
                await refusal.response()(scope, receive, send)
                return
        await self.app(scope, receive, send)


def name_in(host: str) -> str:
    """Return the name or address in a Host header, in lower case, without its port."""
    name, _, port = host.lower().rpartition(":")
    return name if name and not port.endswith("]") else host.lower()
