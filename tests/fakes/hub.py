"""The far side of a hub of the Hugging Face kind: the few calls that publishing and importing make."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Hub(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.commits: list[str] = []
        self.token = "hf_right"  # noqa: S105 - of this fake
        # Each file comes only after so many seconds.
        self.delay_s = 0.0
        self.ended = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def head(self, repository: str) -> str:
        return hashlib.sha1(repr((repository, len(self.commits))).encode(), usedforsecurity=False).hexdigest()


class Answers(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Authorization") != f"Bearer {self.server.token}":
            self.tell({"error": "Invalid credentials"}, 401)
        elif self.path == "/api/validate-yaml":
            self.tell({"errors": [], "warnings": []})
        elif self.path == "/api/repos/create":
            self.create(json.loads(content))
        elif match := re.fullmatch(r"/api/models/(.+)/(preupload|commit)/main", self.path.partition("?")[0]):
            getattr(self, match[2])(match[1], content)
        else:
            self.tell({"error": self.path}, 404)

    def create(self, fields: dict[str, Any]) -> None:
        name = f"{fields['organization']}/{fields['name']}" if fields.get("organization") else fields["name"]
        exists = name in self.server.repositories
        self.server.repositories.setdefault(name, {})
        self.tell({"url": f"{self.server.url}/{name}"}, 409 if exists else 200)

    def preupload(self, name: str, content: bytes) -> None:
        paths = [file["path"] for file in json.loads(content)["files"]]
        files = [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in paths]
        self.tell({"files": files})

    def commit(self, name: str, content: bytes) -> None:
        for line in map(json.loads, content.splitlines()):
            if line["key"] == "file":
                self.server.repositories[name][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            elif line["key"] == "header":
                self.server.commits.append(line["value"]["summary"])
        oid = self.server.head(name)
        self.tell({"success": True, "commitOid": oid, "commitUrl": f"{self.server.url}/{name}/commit/{oid}"})

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/\w+)?", path):
            self.about(match[1])
        elif match := re.fullmatch(r"/api/(datasets/[^/]+/[^/]+)(?:/revision/(\w+))?", path):
            self.about(match[1], match[2])
        elif match := re.fullmatch(r"/api/(?:models/)?((?:datasets/)?[^/]+/[^/]+)/tree/[\w/]+", path):
            files = self.server.repositories[match[1]].items()
            self.tell(
                [
                    {"type": "file", "path": name, "size": len(content), "oid": tag_of(content)}
                    for name, content in files
                ]
            )
        elif match := re.fullmatch(r"/((?:datasets/)?[^/]+/[^/]+)/resolve/\w+/(.+)", path):
            self.file(*match.groups())
        else:
            self.tell({"error": path}, 404)

    def about(self, name: str, revision: str | None = None) -> None:
        if name not in self.server.repositories:
            self.send_error_code("RepoNotFound")
            return
        if revision not in (None, "main", self.server.head(name)):
            self.send_error_code("RevisionNotFound")
            return
        files = [{"rfilename": path} for path in self.server.repositories[name]]
        self.tell({"id": name, "modelId": name, "sha": self.server.head(name), "siblings": files, "private": False})

    def file(self, name: str, path: str) -> None:
        content = self.server.repositories.get(name, {}).get(path)
        if content is None:
            self.send_error_code("EntryNotFound")
            return
        if self.command != "HEAD":
            self.server.ended.wait(self.server.delay_s)
        self.send(content, 200, {"ETag": f'"{tag_of(content)}"', "X-Repo-Commit": self.server.head(name)})

    def send_error_code(self, code: str) -> None:
        self.send(b"{}", 404, {"X-Error-Code": code})

    def tell(self, body: Any, status: int = 200) -> None:
        self.send(json.dumps(body).encode(), status, {"Content-Type": "application/json"})

    def send(self, body: bytes, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def tag_of(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


@contextmanager
def running() -> Iterator[Hub]:
    with Hub() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.ended.set()
        server.shutdown()
