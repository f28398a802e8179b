"""Ids of requests, sent with every answer, errors included: OpenAI's clients show them with their errors."""

from __future__ import annotations

import uuid

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADER = "X-Request-ID"


class RequestIds:
    """Middleware that gives each request an id, under `request.state.id`, and sends it with the answer."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request with an id of its own."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = uuid.uuid4().hex

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[HEADER] = request_id
            await send(message)

        # The lifespan's state is shared by all requests, so a copy of it.
        scope["state"] = {**scope.get("state", {}), "id": request_id}
        await self.app(scope, receive, send_with_id)
