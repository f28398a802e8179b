"""A router, its Valkey and its engines: real servers on loopback sockets."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from serving_client import RoutingTable
from serving_client.router.app import Settings, make_app
from tests.fakes.engine import FakeEngine
from tests.fakes.routing import CANDIDATE, FOREIGN, INFER, STABLE
from tests.fakes.server import Server, closed_url
from tests.fakes.valkey import Valkey
from tests.waiting import wait_until


@dataclass
class Engine:
    fake: FakeEngine
    url: str


@dataclass
class Router:
    """A running router and what a test does with it."""

    http: httpx.Client
    valkey: Valkey

    def publish(self, table: RoutingTable) -> None:
        """Publish as the control plane does, and wait until the router has it."""
        announce(self.valkey, table)
        wait_until(lambda: self.generation() == table.generation, what="the router to take the table")

    def generation(self) -> int | None:
        """None while the router has no table."""
        answer = self.http.get("/readyz")
        return int(answer.json()["generation"]) if answer.is_success else None

    def complete(self, headers: dict[str, str] = INFER, /, **body: Any) -> httpx.Response:
        return self.http.post("/v1/completions", headers=headers, json={"model": "compliance", "prompt": "a"} | body)

    def reports(self) -> list[dict[str, Any]]:
        entries = self.valkey.client.xrange("ah:outcomes")
        return [report for _, fields in entries for report in json.loads(fields[b"o"])]

    def reported(self, count: int = 1) -> list[dict[str, Any]]:
        wait_until(lambda: len(self.reports()) >= count, what=f"{count} reports")
        return self.reports()


def announce(valkey: Valkey, table: RoutingTable) -> None:
    valkey.client.set("ah:routing-table", table.to_json())
    valkey.client.publish("ah:routing-table", str(table.generation))


@contextmanager
def running_valkey() -> Iterator[Valkey]:
    """Running and empty."""
    folder = Path(tempfile.mkdtemp(prefix="ah-", dir="/tmp"))
    server = Valkey(folder)
    server.start()
    yield server
    server.stop()
    shutil.rmtree(folder)


@contextmanager
def running_engine(*adapters: str) -> Iterator[Engine]:
    """An engine that holds the adapters named, by default every version of the tables."""
    fake = FakeEngine(*(adapters or (STABLE, CANDIDATE, FOREIGN)))
    with Server(fake.app()) as server:
        yield Engine(fake, server.url)
        # Opened before the server is asked to end, whatever the test left.
        fake.gate.set()


@contextmanager
def router_process(
    valkey: Valkey, table: RoutingTable, folder: Path, *options: str, **environ: str
) -> Iterator[tuple[subprocess.Popen[bytes], Router]]:
    """A router as a process of its own, which has the table; it may not be ready yet."""
    announce(valkey, table)
    url = closed_url()
    arguments = ["--host", "127.0.0.1", "--port", url.rpartition(":")[2], "--redis-url", valkey.url]
    arguments += ["--snapshot", str(folder / "router/table.json"), "--spool", str(folder / "router/spool")]
    command = [sys.executable, "-m", "serving_client.router", *arguments, *options]
    process = subprocess.Popen(command, env={**os.environ, **environ})
    with httpx.Client(base_url=url, timeout=15) as http:
        yield process, Router(http, valkey)
    process.kill()
    process.wait()


@contextmanager
def running_router(valkey: Valkey, folder: Path, load_deadline_s: float = 10.0, **more: Any) -> Iterator[Router]:
    """A router that keeps snapshot and spool in `folder`."""
    more.setdefault("other_holder_s", 0.2)
    settings = Settings(valkey.url, folder / "table.json", folder / "outcomes.spool", load_deadline_s, **more)
    with Server(make_app(settings)) as server, httpx.Client(base_url=server.url, timeout=15) as http:
        yield Router(http, valkey)
