"""The web process through all attacks on its memory, one after the other and side by side."""

from __future__ import annotations

import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import httpx
import pytest

from registry.models import AdapterVersion, Alias
from tests.builders.patterns import UNFOLDING
from tests.security.bombs import one_endless_row, repeated
from tests.web import WebProcess

MB = 2**20
MOST_KB = 1_000_000
# Values of two letters each: the worst that parsed JSON can take for its size.
CROWD = b'{"slug": "a", "tags": [' + b"{}," * (1_300_000) + b"{}]}"


def peak_kb(pid: int) -> int:
    """The most memory that the process has ever held."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


# What is nested, half a character, or of the wrong kind, each at the size of the longest body that is read.
NESTED = b'{"slug": ' + b'{"a": ' * 2000 + b"1" + b"}" * 2000 + b"}"
DEEP = b'{"checks": {"schema": ' + b"[" * 1_900_000 + b"]" * 1_900_000 + b"}}"
HALVES = b'{"slug": "a", "description": "' + rb"\ud800" * 640_000 + b'"}'


@pytest.mark.slow
@pytest.mark.threat("D15", "D16", "D18", "D19", "D20", "D35")
def test_peak_memory_stays_under_a_gigabyte(
    web_process: WebProcess, ci: str, alias: Alias, candidate: AdapterVersion, tmp_path: Path
) -> None:
    files = [repeated(tmp_path / codec, codec) for codec in ("gzip", "zstd", "snappy")]
    files.append(one_endless_row(tmp_path / "row"))
    plan = {"alias": alias.name, "candidate": candidate.served_name, "steps": [{"weight": 10}], "reason": "try"}
    with (
        httpx.Client(base_url=web_process.url, headers={"Authorization": f"Bearer {ci}"}, timeout=120) as http,
        ThreadPoolExecutor(16) as crowd,
    ):
        calls: list[Callable[[], object]] = [
            *(draft(http, plan | {"draft": True, "checks": {"refusal": pattern}}) for pattern in UNFOLDING),
            *(upload(http, content) for content in files),
            *[crowded(http)] * 16,
            *[long_text(http)] * 16,
            *[sent(http, "/api/v1/adapters/", body) for body in (NESTED, DEEP, HALVES)] * 4,
            *[sent(http, "/api/v1/rollouts/", body) for body in (NESTED, DEEP, HALVES)] * 4,
            *[exported(http, candidate, kind) for kind in ("merged", "portable", "peft")] * 4,
            *[compared(http, candidate)] * 4,
            *[prompted(http)] * 8,
            *[unread(web_process.port, f"GET /api/v1/audit/export/?project=eu HTTP/1.1\r\n{caller(ci)}")] * 8,
            *[unread(web_process.port, "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n" * 500)] * 8,
            *[slow_heads(web_process.port)] * 4,
            *[flood(web_process.port, f"POST /healthz HTTP/1.1\r\nContent-Length: {400 * MB}\r\n\r\n")] * 8,
            *[flood(web_process.port, "GET / HTTP/1.1\r\nX: ")] * 8,
        ]
        for done in [crowd.submit(ask) for ask in calls]:
            done.result()
        assert http.get("/healthz").status_code == 200
    assert peak_kb(web_process.pid) < MOST_KB


def draft(http: httpx.Client, body: dict[str, object]) -> Callable[[], object]:
    def ask() -> None:
        assert http.post("/api/v1/rollouts/", json=body).status_code == 422

    return ask


def upload(http: httpx.Client, content: bytes) -> Callable[[], object]:
    def ask() -> None:
        answer = http.post("/api/v1/datasets/", data={"project": "eu"}, files={"file": ("a.parquet", content)})
        assert answer.status_code in (422, 429, 503)

    return ask


def crowded(http: httpx.Client) -> Callable[[], object]:
    def ask() -> None:
        headers = {"Content-Type": "application/json"}
        assert http.post("/api/v1/adapters/", content=CROWD, headers=headers).status_code in (413, 422)

    return ask


def long_text(http: httpx.Client) -> Callable[[], object]:
    def ask() -> None:
        body = {"project": "eu", "slug": "long", "base_model": "tiny", "description": "a" * 3_900_000}
        assert http.post("/api/v1/adapters/", json=body).status_code < 500

    return ask


def sent(http: httpx.Client, path: str, body: bytes) -> Callable[[], object]:
    def ask() -> None:
        answer = http.post(path, content=body, headers={"Content-Type": "application/json"})
        assert 400 <= answer.status_code < 500, answer.text[:300]

    return ask


def exported(http: httpx.Client, version: AdapterVersion, kind: str) -> Callable[[], object]:
    def ask() -> None:
        path = f"/api/v1/adapters/{version.adapter.slug}/versions/{version.number}/export/"
        assert http.get(path, params={"format": kind}).status_code != 500

    return ask


def compared(http: httpx.Client, version: AdapterVersion) -> Callable[[], object]:
    def ask() -> None:
        path = f"/api/v1/adapters/{version.adapter.slug}/versions/{version.number}/compare/"
        assert http.get(path, params={"to": 1}).status_code != 500

    return ask


def prompted(http: httpx.Client) -> Callable[[], object]:
    def ask() -> None:
        body = {"adapter": "dora", "versions": [1, 2], "prompts": ["a" * 3_900_000]}
        assert 400 <= http.post("/api/v1/blind-tests/", json=body).status_code < 500

    return ask


def caller(token: str) -> str:
    return f"Host: localhost\r\nAuthorization: Bearer {token}\r\n\r\n"


def unread(port: int, requests: str) -> Callable[[], object]:
    """Ask, and read nothing of the answers for a while."""

    def ask() -> None:
        with closing(socket.create_connection(("127.0.0.1", port), timeout=5)) as connection, suppress(OSError):
            connection.sendall(requests.encode())
            connection.settimeout(3)
            connection.recv(1, socket.MSG_PEEK)

    return ask


def slow_heads(port: int) -> Callable[[], object]:
    """Connections whose heads are long and do not end."""

    def hold() -> None:
        with ExitStack() as stack:
            for _ in range(100):
                connection = stack.enter_context(closing(socket.create_connection(("127.0.0.1", port), timeout=5)))
                with suppress(OSError):
                    connection.sendall(b"GET / HTTP/1.1\r\nX: " + b"a" * 60_000)

    return hold


def flood(port: int, head: str) -> Callable[[], object]:
    def send() -> None:
        with closing(socket.create_connection(("127.0.0.1", port), timeout=10)) as connection, suppress(OSError):
            connection.sendall(head.encode())
            for _ in range(100):
                connection.sendall(b"x" * MB)

    return send
