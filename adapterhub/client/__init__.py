"""AdapterHub's REST API for Python programs: typed calls, a client for threads and one for event loops.

    with Client("https://hub.example.org", token) as hub:
        run = hub.send(calls.train("eu", "dora", dataset=4, method="lora"))

Every POST carries an Idempotency-Key and is retried with it, so a lost answer has no second effect. Errors are
`ApiError` (with the server's stable `code`), `Unreachable` and `TimedOut`.
"""

from __future__ import annotations

from adapterhub.client import calls, shapes
from adapterhub.client.clients import AsyncClient, Client
from adapterhub.client.errors import ApiError, ClientError, TimedOut, Unreachable

__all__ = ["ApiError", "AsyncClient", "Client", "ClientError", "TimedOut", "Unreachable", "calls", "shapes"]
