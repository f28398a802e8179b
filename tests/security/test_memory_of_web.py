"""The web process through all attacks on its memory, one after the other and side by side.

Each runs against a process of its own, which `running_web` holds to a gigabyte.
"""

from __future__ import annotations

import resource
import socket
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from functools import partial
from pathlib import Path

import httpx
import pytest
from django.db import transaction

from adapterhub.accounts.models import ApiToken, Project, User
from adapterhub.audit.models import AuditEvent
from adapterhub.audit.tags import Tag
from adapterhub.core.actor import system
from registry.models import AdapterVersion, Alias
from tests.audit import tamper
from tests.builders.adapters import write_adapter
from tests.builders.patterns import UNFOLDING
from tests.fakes.playground_router import PlaygroundRouter, running_playground_router
from tests.fakes.stage import running_valkey
from tests.security.bombs import one_endless_row, repeated
from tests.web import WebProcess, running_web
from training.models import Evaluation

MB = 2**20
WEIGHTS = "adapter_model.safetensors"
# Values of two letters each: the worst that parsed JSON can take for its size.
CROWD = b'{"slug": "a", "tags": [' + b"{}," * (1_300_000) + b"{}]}"


# What is nested, half a character, or of the wrong kind, each at the size of the longest body that is read.
NESTED = b'{"slug": ' + b'{"a": ' * 2000 + b"1" + b"}" * 2000 + b"}"
DEEP = b'{"checks": {"schema": ' + b"[" * 1_900_000 + b"]" * 1_900_000 + b"}}"
HALVES = b'{"slug": "a", "description": "' + rb"\ud800" * 640_000 + b'"}'


@pytest.mark.slow
@pytest.mark.threat("D15", "D16", "D18", "D19", "D20", "D22", "D25", "D35")
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


@pytest.mark.slow
@pytest.mark.threat("D26", "D33", "D37")
def test_long_lists_and_a_hostile_engine_fill_no_memory(
    fresh_database: str, ci: str, alias: Alias, candidate: AdapterVersion, project: Project, alice: User
) -> None:
    """Events of 570 kB and evaluations of 400 kB, read in every way at once, while engines answer without end."""
    long_trail(project, alias)
    prompts = ["x" * 8000] * 50
    base = candidate.adapter.base_model
    jobs = [Evaluation(project=project, base_model=base, version=candidate, prompts=prompts) for _ in range(200)]
    Evaluation.objects.bulk_create(jobs, batch_size=20)
    Project.objects.update(named_versions="any")
    page = "/api/v1/audit/events/?page_size=200"
    paths = [f"/api/v1/audit/export/?project=eu&as={kind}" for kind in ("jsonl", "csv")]
    blind = {"adapter": "dora", "versions": [1, 2], "prompts": ["the bank"] * 8}
    PlaygroundRouter.payload = b'{"choices": [{"text": "' + b"a" * 100 * MB + b'"}]}'
    try:
        with (
            running_playground_router() as router,
            running_web(fresh_database, ADAPTERHUB_ROUTER_URL=router) as web,
            caller_of(web, ci) as http,
        ):
            calls = [partial(http.get, "/api/v1/evaluations/?page_size=200")] * 6
            calls += [partial(http.get, page)] * 6 + [partial(read, http, path) for path in paths]
            calls += [partial(http.get, "/api/v1/audit/verify/?project=eu")]
            calls += [partial(http.get, f"/api/v1/aliases/{alias.name}/responsibility/")] * 2
            calls += [partial(http.post, "/api/v1/blind-tests/", json=blind)] * 4
            assert side_by_side(calls) <= {200, 429, 503}
    finally:
        PlaygroundRouter.payload = b""


def long_trail(project: Project, alias: Alias) -> None:
    """Record an event as large as one can be, and copy it: to record them all would take long."""
    part = {str(number): "x" * 19_000 for number in range(10)}
    with transaction.atomic():
        event = AuditEvent.record(
            Tag.ALIAS_POLICY_CHANGED, alias, by=system("test"), project=project, before=part, after=part, evidence=part
        )
    names = [field.column for field in AuditEvent._meta.fields if field.name not in ("id", "sequence")]
    columns = ", ".join(names)
    tamper.as_owner(
        f"INSERT INTO {tamper.TABLE} (sequence, {columns}) SELECT sequence + number, {columns} "  # noqa: S608
        f"FROM {tamper.TABLE}, generate_series(1, 300) AS number WHERE id = {event.pk}"
    )


@pytest.mark.slow
@pytest.mark.threat("D32")
def test_decisions_while_valkey_hangs_fill_no_memory(
    fresh_database: str, ci: str, alias: Alias, candidate: AdapterVersion, project: Project, alice: User
) -> None:
    tokens = [
        ApiToken.issue(name=f"lost {number}", project=project, scopes=["infer"], created_by=alice)[0]
        for number in range(24)
    ]
    move = {"version": candidate.served_name, "expected_version": alias.version.served_name, "reason": "it is worse"}
    with (
        running_valkey() as valkey,
        running_web(fresh_database, REDIS_URL=valkey.url) as web,
        caller_of(web, ci) as http,
    ):
        valkey.hang()
        try:
            calls = [partial(http.post, f"/api/v1/tokens/{token.pk}/revoke/", json={"reason": "x"}) for token in tokens]
            calls += [partial(http.post, f"/api/v1/aliases/{alias.name}/move/", json=move)] * 24
            assert side_by_side(calls) <= {202, 409}, "a move is made once"
        finally:
            valkey.wake()
    assert not ApiToken.objects.filter(pk__in=[token.pk for token in tokens], revoked_at=None).exists()


@pytest.mark.slow
@pytest.mark.threat("D24")
def test_a_full_disk_fills_no_memory(fresh_database: str, ci: str, candidate: AdapterVersion, tmp_path: Path) -> None:
    place, folder = "/api/v1/adapters/dora/versions", write_adapter(tmp_path / "new", seed=7)
    files = {name.partition(".")[0]: (folder / name).read_bytes() for name in ("adapter_config.json", WEIGHTS)}
    rows = {"file": ("rows.jsonl", b'{"text": "of nobody"}\n' * 1_000_000)}
    with running_web(fresh_database) as web, caller_of(web, ci) as http:
        # No file of the process, nor of the children that it starts, grows beyond 16 bytes.
        resource.prlimit(web.pid, resource.RLIMIT_FSIZE, (16, resource.RLIM_INFINITY))
        calls = [partial(http.post, "/api/v1/datasets/", data={"project": "eu"}, files=rows)] * 8
        calls += [partial(http.post, f"{place}/", files=files)] * 8
        calls += [partial(http.get, f"{place}/1/download/")] * 8
        calls += [partial(http.get, f"{place}/1/export/", params={"format": kind}) for kind in ("merged", "peft")] * 4
        calls += [partial(http.get, "/api/v1/audit/export/?project=eu&as=bundle")] * 8
        answers = side_by_side(calls)
    assert 507 in answers
    assert answers <= {507, 429}


def caller_of(web: WebProcess, token: str) -> httpx.Client:
    return httpx.Client(base_url=web.url, headers={"Authorization": f"Bearer {token}"}, timeout=120)


def read(http: httpx.Client, path: str) -> httpx.Response:
    """Read an answer that is larger than what this process should hold."""
    with http.stream("GET", path) as answer:
        for _ in answer.iter_raw():
            pass
        return answer


def side_by_side(calls: Iterable[Callable[[], httpx.Response]]) -> set[int]:
    """Make the calls, 16 at once; return the statuses of their answers."""
    with ThreadPoolExecutor(16) as crowd:
        return {done.result().status_code for done in [crowd.submit(call) for call in calls]}


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
