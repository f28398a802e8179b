"""Attacks through the address of an engine: the router is led inside, and answers of what listens there come back."""

from __future__ import annotations

import logging
import socketserver
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from aiohttp import DefaultResolver

from adapterhub.audit.models import AuditEvent
from adapterhub.embedded.options import Options
from adapterhub.embedded.process_list import full_plan
from registry.models import Alias, Replica
from registry.serving.reconciler import reconcile
from serving_client import RoutingTable
from tests.builders.fleet import OnDisk
from tests.fakes.engine import FakeEngine, error
from tests.fakes.routing import make_table
from tests.fakes.server import Server, in_thread
from tests.fakes.stage import Router, running_engine, running_router, running_valkey

Start = Callable[..., Router]


@pytest.fixture
def start_router(tmp_path: Path) -> Iterator[Start]:
    with ExitStack() as stack:
        valkey = stack.enter_context(running_valkey())
        yield lambda **settings: stack.enter_context(running_router(valkey, tmp_path, **settings))


def refused(router: Router, table: RoutingTable) -> bool:
    router.publish(table)
    answer = router.complete()
    return answer.status_code == 502 and answer.json()["error"]["code"] == "no_replica_answers"


@pytest.mark.threat("D34")
@pytest.mark.parametrize("hosts", [("gpu.example",), ("127.0.0.1:1",), ("10.0.0.0/8", ".engines.internal"), ()])
def test_the_router_asks_nobody_whom_no_operator_listed(start_router: Start, hosts: tuple[str, ...]) -> None:
    """The attack: a forged table, or one from before the list was narrowed, names an address inside."""
    with running_engine() as engine:
        router = start_router(engine_hosts=hosts)
        assert refused(router, make_table(engine.url))
        by_name = engine.url.replace("127.0.0.1", "localhost")
        assert refused(router, make_table(by_name, generation=2))
        assert refused(router, make_table("file:///etc/passwd", generation=3))
        assert engine.fake.received == []


@pytest.mark.threat("D34")
@pytest.mark.parametrize("listed", ["127.0.0.1", "127.0.0.0/8", "port"])
def test_the_router_asks_what_is_listed(start_router: Start, listed: str) -> None:
    with running_engine() as engine:
        port = engine.url.rpartition(":")[2]
        router = start_router(engine_hosts=(f"127.0.0.1:{port}" if listed == "port" else listed,))
        router.publish(make_table(engine.url))
        assert router.complete().status_code == 200


@pytest.mark.threat("D34")
@pytest.mark.parametrize(("network", "is_followed"), [("10.0.0.0/8", False), ("127.0.0.0/8", True)])
def test_a_name_that_leads_elsewhere_is_not_followed(
    start_router: Start, monkeypatch: pytest.MonkeyPatch, network: str, is_followed: bool
) -> None:
    """The attack: a name in a listed network is given another address after it was registered."""
    lookup = DefaultResolver.resolve

    async def turned(resolver: Any, host: str, *arguments: Any) -> Any:
        return await lookup(resolver, "127.0.0.1" if host == "gpu.example" else host, *arguments)

    monkeypatch.setattr(DefaultResolver, "resolve", turned)
    with running_engine() as engine:
        port = engine.url.rpartition(":")[2]
        router = start_router(engine_hosts=(network,))
        assert refused(router, make_table(f"http://gpu.example:{port}")) is not is_followed
        assert bool(engine.fake.received) is is_followed


@pytest.mark.threat("D34")
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_an_engine_does_not_send_a_prompt_elsewhere(start_router: Start, status: int) -> None:
    """The attack: a registered engine answers with a redirect to a service inside, and its answer comes back."""

    async def redirecting(scope: Any, receive: Any, send: Any) -> None:
        location = (b"location", f"{inside.url}/v1/completions".encode())
        await send({"type": "http.response.start", "status": status, "headers": [location]})
        await send({"type": "http.response.body", "body": b"the-secret"})

    with running_engine() as inside, Server(redirecting, lifespan="off") as engine:
        router = start_router()
        router.publish(make_table(engine.url))
        answer = router.complete()
        assert (answer.status_code, answer.json()["error"]["code"]) == (502, "replica_failed")
        assert "the-secret" not in answer.text
        assert inside.fake.received == []


def test_embedded_and_compose_give_the_router_the_list() -> None:
    options = Options.from_environ({"ADAPTERHUB_ENGINES": "0", "ADAPTERHUB_ENGINE_HOSTS": "gpu.example,10.0.0.0/8"})
    router = next(process for process in full_plan(options).processes if process.name == "router")
    at = list(router.argv).index("--engine-hosts")
    assert router.argv[at + 1] == "gpu.example,10.0.0.0/8"


class Imposter(FakeEngine):
    """A server that looks like an engine and answers a load, or its probe, with words that it should keep."""

    def __init__(self, refusal: Any, *, at_probe: bool) -> None:
        super().__init__()
        self.folders = OnDisk()
        self.refusal, self.at_probe = refusal, at_probe

    async def load(self, request: Any) -> Any:
        return await super().load(request) if self.at_probe else self.refusal

    async def complete(self, request: Any) -> Any:
        return self.refusal


WORDS = "the-secret " * 400


@pytest.mark.slow
@pytest.mark.threat("D26")
@pytest.mark.parametrize("at_probe", [False, True])
@pytest.mark.parametrize("status", [400, 404, 422, 500, 503])
def test_the_words_of_a_load_that_failed_go_into_the_log_alone(
    fresh_database: str, alias: Alias, alice: Any, caplog: pytest.LogCaptureFixture, at_probe: bool, status: int
) -> None:
    caplog.set_level(logging.WARNING, "registry")
    imposter = Imposter(error(status, "InternalServerError", WORDS), at_probe=at_probe)
    with Server(imposter.app()) as server:
        alias.cluster.add_replica(url=server.url, by=alice.as_actor())
        reconcile()
    replica = Replica.objects.get()
    visible = f"{replica.message} {replica.refused}"
    assert replica.message or replica.refused
    events = str(list(AuditEvent.objects.values_list("reason", "after", "evidence")))
    assert "the-secret" not in visible + events
    lines = [record.getMessage() for record in caplog.records if "the-secret" in record.getMessage()]
    assert lines
    assert max(map(len, lines)) < 1_000


@pytest.mark.threat("D26")
@pytest.mark.parametrize("banner", [b"SSH-2.0-the-secret\r\n", b"220 the-secret ESMTP\r\n", b"-ERR the-secret\r\n"])
def test_the_banner_of_another_service_goes_into_the_log_alone(
    fresh_database: str, alias: Alias, alice: Any, banner: bytes
) -> None:
    """Words of a service that speaks no HTTP must not be part of the error's text."""

    class Greeting(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.sendall(banner)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Greeting) as service, in_thread(service):
        alias.cluster.add_replica(url=f"http://127.0.0.1:{service.server_address[1]}", by=alice.as_actor())
        reconcile()
    assert Replica.objects.get().message == "It does not answer."
