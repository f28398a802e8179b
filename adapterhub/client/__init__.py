"""AdapterHub's REST API for Python programs: typed calls, a client for threads and one for event loops.

    with Client("https://hub.example.org", token) as hub:
        run = hub.wait(calls.train("eu", "dora", dataset=4, method="lora"))

`send` carries a call out, `wait` also follows what it began to its end. Every POST carries an Idempotency-Key and is
retried with it, so a lost answer has no second effect. Errors are `ApiError` (with the server's stable `code`),
`Failed` (what was waited for did not end well), `Unreachable` and `TimedOut`.
"""

from __future__ import annotations

from adapterhub.client import calls, rest_types
from adapterhub.client.clients import AsyncClient, Client
from adapterhub.client.errors import ApiError, ClientError, Failed, TimedOut, Unreachable

__all__ = [
    "ApiError",
    "AsyncClient",
    "Client",
    "ClientError",
    "Failed",
    "TimedOut",
    "Unreachable",
    "calls",
    "rest_types",
]
