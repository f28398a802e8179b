"""The router as the playground asks it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any


class PlaygroundRouter(BaseHTTPRequestHandler):
    """Answers for the models that it knows, and refuses the others; `requests` holds those that came.

    `payload`, if it is not empty, is the whole answer to each request, as a hostile engine gives it.
    """

    requests: list[dict[str, Any]] = []
    known = {"compliance"}
    payload = b""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.requests.append({**body, "token": self.headers["Authorization"], "session": self.headers["X-Session-Key"]})
        if self.payload and body.get("stream"):
            self.head(200, b"data: " + self.payload + b"\n\ndata: [DONE]\n\n", "text/event-stream")
        elif self.payload:
            self.head(200, self.payload, "application/json")
        elif body["model"] in self.known and body.get("stream"):
            self.say_piecewise(["within ", "four ", "hours"])
        elif body["model"] in self.known:
            self.say(200, {"choices": [{"text": "within four hours"}], "usage": {"completion_tokens": 3}})
        else:
            self.say(404, {"error": {"message": "The model does not exist."}})

    def say_piecewise(self, texts: list[str]) -> None:
        events = [{"choices": [{"text": text}]} for text in texts]
        events.append({"choices": [], "usage": {"completion_tokens": 3}})
        payload = b"".join(f"data: {json.dumps(event)}\n\n".encode() for event in events) + b"data: [DONE]\n\n"
        self.head(200, payload, "text/event-stream")

    def say(self, status: int, body: dict[str, Any]) -> None:
        self.head(status, json.dumps(body).encode(), "application/json")

    def head(self, status: int, payload: bytes, content_type: str) -> None:
        self.send_response(status)
        for name, value in {
            "Content-Type": content_type,
            "Content-Length": str(len(payload)),
            "X-Adapter-Version": "dora.v1-abc",
            "X-Rollout-Arm": "control",
            "X-Response-ID": "r-17",
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def running_playground_router() -> Iterator[str]:
    """Serve it from a thread for as long as the block; the value is its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), PlaygroundRouter)
    PlaygroundRouter.requests.clear()
    PlaygroundRouter.known = {"compliance"}
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
