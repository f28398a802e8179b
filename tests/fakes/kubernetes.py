"""The part of Kubernetes' API that discovery speaks: EndpointSlices with versions, pages, watches, and a short memory.

It keeps the protocol as the API's concepts describe it: each change raises the version, a watch tells what came after
the version that it names, and a version that is forgotten is 410 Gone, as an answer or as an event of the watch.
"""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

TOKEN = "of the service account"  # noqa: S105
GONE = {"kind": "Status", "status": "Failure", "code": 410, "reason": "Expired", "message": "too old resource version"}
END = object()


class FakeKubernetes:
    """Serves one namespace, `ml`, at `url`."""

    def __init__(self) -> None:
        self.slices: dict[str, Any] = {}
        self.version = 100
        self.oldest = 100
        self.history: list[tuple[int, dict[str, Any]]] = []
        self.requests: list[dict[str, str]] = []
        self.status = 200
        self.page = 500
        self._watches: list[queue.Queue[Any]] = []
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler_of(self))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.break_watches()
        self._server.shutdown()
        self._server.server_close()

    def put(self, name: str, *endpoints: dict[str, Any], fleet: str = "llama", port: int = 8000) -> None:
        """Create or change a slice."""
        kind = "MODIFIED" if name in self.slices else "ADDED"
        labels = {"adapterhub.io/fleet": fleet}
        self._change(
            kind,
            {
                "metadata": {"name": name, "labels": labels},
                "addressType": "IPv4",
                "ports": [{"name": "http", "port": port}, {"name": "metrics", "port": 9}],
                "endpoints": list(endpoints),
            },
        )

    def delete(self, name: str) -> None:
        self._change("DELETED", self.slices[name])

    def forget(self) -> None:
        """Forget every version before the present one, as after a compaction."""
        with self._lock:
            self.version += 10
            self.oldest, self.history = self.version, []

    def break_watches(self) -> None:
        """End every watch without a word, as a lost connection does."""
        with self._lock:
            for watch in self._watches:
                watch.put(END)

    def watches(self) -> int:
        with self._lock:
            return len(self._watches)

    def _change(self, kind: str, item: dict[str, Any]) -> None:
        with self._lock:
            self.version += 1
            item = {**item, "metadata": {**item["metadata"], "resourceVersion": str(self.version)}}
            if kind == "DELETED":
                del self.slices[item["metadata"]["name"]]
            else:
                self.slices[item["metadata"]["name"]] = item
            event = {"type": kind, "object": item}
            self.history.append((self.version, event))
            for watch in self._watches:
                watch.put(event)

    def listed(self, query: dict[str, str]) -> dict[str, Any]:
        with self._lock:
            rows = [item for _, item in sorted(self.slices.items())]
            items = [item for item in rows if is_chosen(item, query["labelSelector"])]
            start = int(query.get("continue", "0"))
            meta = {"resourceVersion": str(self.version)}
            if start + self.page < len(items):
                meta["continue"] = str(start + self.page)
            return {"metadata": meta, "items": items[start : start + self.page]}

    def events(self, query: dict[str, str]) -> Iterator[dict[str, Any] | object]:
        """Every change after the version, then each as it comes."""
        since, changes = int(query["resourceVersion"]), queue.Queue[Any]()
        with self._lock:
            if since < self.oldest:
                changes.put({"type": "ERROR", "object": GONE})
                changes.put(END)
            for version, event in self.history:
                if version > since:
                    changes.put(event)
            self._watches.append(changes)
        try:
            while True:
                event = changes.get()
                if event is END or event["type"] == "ERROR" or is_chosen(event["object"], query["labelSelector"]):
                    yield event
        finally:
            with self._lock:
                self._watches.remove(changes)


def is_chosen(item: dict[str, Any], selector: str) -> bool:
    wanted = dict(part.split("=") for part in selector.split(","))
    return wanted.items() <= item["metadata"]["labels"].items()


def handler_of(cluster: FakeKubernetes) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            query = {name: values[0] for name, values in parse_qs(parts.query).items()}
            cluster.requests.append(query)
            if self.headers["Authorization"] != f"Bearer {TOKEN}":
                return self.answer(401, {"message": "Unauthorized"})
            if parts.path != "/apis/discovery.k8s.io/v1/namespaces/ml/endpointslices":
                return self.answer(403, {"message": "endpointslices is forbidden"})
            if cluster.status != 200:
                return self.answer(cluster.status, GONE if cluster.status == 410 else {"message": "not now"})
            return self.watch(query) if "watch" in query else self.answer(200, cluster.listed(query))

        def answer(self, status: int, body: dict[str, Any]) -> None:
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def watch(self, query: dict[str, str]) -> None:
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for event in cluster.events(query):
                if event is END:
                    # Without the last chunk: the connection is lost.
                    self.close_connection = True
                    return
                line = json.dumps(event).encode() + b"\n"
                # A line may come in pieces.
                for piece in (line[:10], line[10:]):
                    self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")

        def log_message(self, *_: object) -> None:
            """Stay silent."""

    return Handler


def endpoint(address: str, *, ready: bool = True, terminating: bool = False) -> dict[str, Any]:
    return {"addresses": [address], "conditions": {"ready": ready, "serving": ready, "terminating": terminating}}
