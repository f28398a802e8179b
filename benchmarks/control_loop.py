"""Seconds from a promotion to the last of 10, 100 and 1,000 replicas, and of a rollback, on simulated replicas.

A simulated replica answers in vLLM's words after `LOAD_S` for a load and `PROBE_S` for a probe. The peer is the same
loop with one replica at a time, where that takes less than minutes; else the goal stands in its place.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import sys
import tempfile
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import redis.asyncio as redis
import uvloop

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.report import Row, arguments, publish
from benchmarks.router_sides import free_port, length_in, wait_for
from serving_client.protocol import RoutingTable
from serving_client.router.table_follower import TableWatcher

LOAD_S, PROBE_S = 0.05, 0.01
GOALS_S = {100: 1.0, 1000: 5.0}
ROLLBACK_GOAL_S = 0.25
MOST_ONE_BY_ONE = 100


class Replicas(asyncio.Protocol):
    """All of them behind one port: the first part of the path says which."""

    loaded: dict[str, dict[str, str]] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]
        self.data = b""

    def data_received(self, data: bytes) -> None:
        self.data += data
        end = self.data.find(b"\r\n\r\n") + 4
        if end < 4 or len(self.data) < end + length_in(self.data[:end]):
            return
        path = self.data.split(b" ", 2)[1].decode()
        body, self.data = self.data[end:], b""
        _, replica, verb = path.split("/", 2)
        answer, after_s = self.answer(self.loaded.setdefault(replica, {}), verb, json.loads(body or b"{}"))
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
        content = json.dumps(answer).encode()
        asyncio.get_running_loop().call_later(after_s, self.transport.write, head % len(content) + content)

    def answer(self, loaded: dict[str, str], verb: str, body: dict[str, Any]) -> tuple[Any, float]:
        match verb:
            case "v1/load_lora_adapter":
                loaded[body["lora_name"]] = body["lora_path"]
                return "loaded", LOAD_S
            case "v1/unload_lora_adapter":
                loaded.pop(body["lora_name"], None)
                return "unloaded", 0
            case "v1/completions":
                return {"choices": [{"text": "a b c d"}], "usage": {"completion_tokens": 4}}, PROBE_S
            case "version":
                return {"version": "0.33.0"}, 0
        rows = [{"id": name, "root": path, "parent": "tiny"} for name, path in loaded.items()]
        return {"data": [{"id": "tiny", "root": "tiny", "parent": None}, *rows]}, 0


def serve(port: int) -> None:
    async def run() -> None:
        loop = asyncio.get_running_loop()
        await (await loop.create_server(Replicas, "127.0.0.1", port, backlog=2048)).serve_forever()

    uvloop.run(run())


def boot(home: str) -> None:
    os.environ |= {"DJANGO_SETTINGS_MODULE": "adapterhub.settings", "ADAPTERHUB_HOME": home}
    os.environ["ADAPTERHUB_ENGINE_HOSTS"] = "127.0.0.1"
    import django

    django.setup()


def build(folder: Path) -> tuple[Any, list[Any]]:
    """An alias and two versions."""
    from adapterhub.accounts.models import Project
    from adapterhub.core.actor import system
    from registry.models import Adapter, AdapterVersion, Alias, BaseModel, Cluster
    from tests.builders import CONFIG, write_adapter

    by, project = system("benchmark"), Project.objects.create(slug="eu", name="eu")
    model = BaseModel.objects.create(slug="tiny", source="tiny")
    model.folder.mkdir(parents=True)
    (model.folder / "config.json").write_text(json.dumps(CONFIG))
    (model.folder / "tokenizer.json").write_text("{}")
    (model.folder / "model.safetensors").write_bytes(b"\2\0\0\0\0\0\0\0{}")
    model.inspect()
    cluster = Cluster.create(project=project, slug="gpu", base_model=model, by=by)
    adapter = Adapter.create(project=project, slug="dora", base_model=model, by=by)
    versions = [
        AdapterVersion.publish(adapter, write_adapter(folder / str(seed), seed=seed), method="upload", by=by)
        for seed in range(2)
    ]
    alias = Alias.create(project=project, name="a", cluster=cluster, version=versions[0], policy={}, by=by)
    return alias, versions


def put_replicas(cluster: Any, port: int, count: int, label: str) -> None:
    from registry.models import Replica

    Replica.objects.all().delete()
    Replica.objects.bulk_create(
        Replica(cluster=cluster, url=f"http://127.0.0.1:{port}/{label}{number}") for number in range(count)
    )


class Listener(TableWatcher):
    """A router: the times at which it had a table in which the alias serves a version from so many replicas."""

    def __init__(self, url: str, snapshot: Path) -> None:
        super().__init__(redis.Redis.from_url(url), snapshot)
        self.arrived: list[tuple[float, str, int]] = []
        threading.Thread(target=lambda: asyncio.run(self.run()), daemon=True).start()

    async def _use(self, table: RoutingTable, text: bytes | str | None) -> None:
        if route := table.aliases.get("eu/a"):
            self.arrived.append((time.perf_counter(), route.stable, len(table.versions[route.stable].replicas)))
        await super()._use(table, text)

    def wait(self, version: str, count: int) -> float:
        """When the first such table arrived."""
        deadline = time.perf_counter() + 120
        while time.perf_counter() < deadline:
            for at, name, replicas in self.arrived:
                if (name, replicas) == (version, count):
                    return at
            time.sleep(0.001)
        raise TimeoutError(f"{version} did not reach {count} replicas.")


def seconds(alias: Any, new: Any, count: int, listener: Listener) -> float:
    """From the move until a router has the table in which all replicas hold the version."""
    from adapterhub.core.actor import system
    from registry.models import Replica
    from registry.serving.reconciler import reconcile

    alias.refresh_from_db()
    listener.arrived.clear()
    began = time.perf_counter()
    alias.move(new, expected=alias.version, reason="benchmark", by=system("benchmark"))
    # The move told the routers; the loop has work only when a replica does not hold the version yet.
    if Replica.objects.filter(is_healthy=True, loaded__has_key=new.served_name).count() < count:
        reconcile()
    return listener.wait(new.served_name, count) - began


def measure(alias: Any, versions: list[Any], port: int, counts: list[int], listener: Listener) -> list[Row]:
    from registry.serving import replica_calls
    from registry.serving.reconciler import reconcile

    rows, parallel = [], replica_calls.AT_ONCE
    for count in counts:
        timed: dict[int, tuple[float, float]] = {}
        # One at a time, 1,000 replicas would take minutes.
        for at_once in (parallel, 1) if count <= MOST_ONE_BY_ONE else (parallel,):
            replica_calls.AT_ONCE = at_once
            old, new = versions
            put_replicas(alias.cluster, port, count, f"r{count}x{at_once}-")
            # These replicas hold nothing yet: they get the old version alone.
            settle(0)
            reconcile()
            settle(3600)
            timed[at_once] = (seconds(alias, new, count, listener), seconds(alias, old, count, listener))
        ours, peer = timed[parallel], timed.get(1, (GOALS_S.get(count, 0.0), ROLLBACK_GOAL_S))
        goal = GOALS_S.get(count)
        label = f"{count:,} replicas"
        rows.append(
            Row(
                f"s, cold promotion to the last of {label}",
                ours[0],
                peer[0],
                (goal or peer[0]) / ours[0],
                1.0 if goal else None,
            )
        )
        rows.append(Row(f"s, rollback while warm, {label}", ours[1], peer[1], ROLLBACK_GOAL_S / ours[1], 1.0))
    return rows


def settle(window_s: int) -> None:
    """How long a replaced version is kept."""
    from django.conf import settings

    settings.ROLLBACK_WINDOW = timedelta(seconds=window_s)


def main() -> None:
    options = arguments(__doc__ or "")
    from adapterhub.embedded.postgres import EmbeddedPostgres
    from adapterhub.embedded.valkey import EmbeddedValkey

    port = free_port()
    replicas = multiprocessing.Process(target=serve, args=(port,), daemon=True)
    replicas.start()
    wait_for(port)
    with tempfile.TemporaryDirectory(prefix="adapterhub-bench-", dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o711)
        with EmbeddedPostgres(folder), EmbeddedValkey(folder):
            boot(name)
            from django.conf import settings
            from django.core.management import call_command

            call_command("migrate", verbosity=0)
            alias, versions = build(folder / "made")
            counts = [5] if options.short else [10, 100, 1000]
            listener = Listener(settings.REDIS_URL, folder / "table")
            publish("control_loop", measure(alias, versions, port, counts, listener), options.out)
    replicas.kill()


if __name__ == "__main__":
    main()
