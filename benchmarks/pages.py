"""The first byte of every page with 10,000 versions: one browser, one web process, the embedded Postgres and Valkey.

    python benchmarks/pages.py --out benchmarks/results/pages.json

Fill it on a machine with little else to do: a transaction that waits too long is ended. The world is that of the
pages' tests: 48 adapters, 1,250 runs, one event a version. Each page is asked for 20 times after two that are not
counted; the row says the slow end of them.
"""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.control_loop import boot
from benchmarks.report import Row, arguments, publish
from tests.waiting import wait_until

VERSIONS, CALLS, GOAL_MS = 10_000, 20, 100.0


def fill(versions: int, folder: Path) -> tuple[dict[str, str], str]:
    """The address of every page, and the session of somebody who may see them all."""
    from django.test import Client

    from adapterhub.accounts.models import Project
    from registry.models import Adapter, AdapterVersion
    from tests.builders import member, rows, write_adapter, write_jsonl
    from tests.pages.every_page import every_page
    from tests.pages.realistic import World, cast
    from training.models import Dataset

    project = Project.objects.create(slug="eu", name="European compliance")
    alice = member("alice", project, "admin")
    cast(project)
    world = World(project, alice, adapters=48, versions=versions)
    adapter = Adapter.create(project=project, slug="dora", base_model=tiny(), by=world.by)
    folders = [write_adapter(folder / str(seed), seed=seed) for seed in range(2)]
    stored = [AdapterVersion.publish(adapter, each, method="upload", by=world.by) for each in folders]
    file = write_jsonl(folder / "rows.jsonl", rows())
    dataset = Dataset.create(project=project, name="incidents", file=file, filename="rows.jsonl", by=world.by)
    urls = every_page(world, stored[1], dataset)
    client = Client()
    client.force_login(alice)
    return urls, client.cookies["sessionid"].value


def tiny() -> Any:
    import json

    from registry.models import BaseModel
    from tests.builders import CONFIG

    model = BaseModel.objects.create(slug="tiny", source="tiny")
    model.folder.mkdir(parents=True)
    (model.folder / "config.json").write_text(json.dumps(CONFIG))
    (model.folder / "tokenizer.json").write_text("{}")
    (model.folder / "model.safetensors").write_bytes(b"\2\0\0\0\0\0\0\0{}")
    model.inspect()
    return model


@contextmanager
def web() -> Iterator[int]:
    """A web process as in production; its port."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "uvicorn", "adapterhub.asgi:application", "--port", str(port)]
    command += ["--no-access-log", "--no-proxy-headers"]
    process = subprocess.Popen(command, env=dict(os.environ))  # noqa: S603
    try:
        wait_until(lambda: is_open(port), 60, "the web process listens")
        yield port
    finally:
        process.terminate()
        process.wait(20)


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def first_byte_ms(connection: http.client.HTTPConnection, url: str, session: str) -> float:
    began = time.perf_counter()
    connection.request("GET", url, headers={"Cookie": f"sessionid={session}"})
    answer = connection.getresponse()
    answer.read(1)
    milliseconds = 1000 * (time.perf_counter() - began)
    answer.read()
    if answer.status != 200:
        raise RuntimeError(f"{url}: {answer.status}")
    return milliseconds


def measure(port: int, urls: dict[str, str], session: str, calls: int) -> list[Row]:
    connection, rows = http.client.HTTPConnection("127.0.0.1", port, timeout=60), []
    for name, url in urls.items():
        times = [first_byte_ms(connection, url, session) for _ in range(calls + 2)][2:]
        slow = sorted(times)[int(0.95 * (len(times) - 1))]
        rows.append(Row(f"ms, first byte of {name}", slow, GOAL_MS, GOAL_MS / slow, 1.0))
    connection.close()
    return sorted(rows, key=lambda row: -row.ours)


def main() -> None:
    args = arguments(__doc__ or "", "versions")
    versions = int(args.versions or (300 if args.short else VERSIONS))
    with tempfile.TemporaryDirectory(prefix="adapterhub-", dir="/tmp") as home:
        Path(home).chmod(0o711)
        boot(home)
        from django.core.management import call_command
        from django.db import connection

        from adapterhub.embedded.postgres import EmbeddedPostgres
        from adapterhub.embedded.valkey import EmbeddedValkey

        with EmbeddedPostgres(Path(home)), EmbeddedValkey(Path(home)):
            call_command("migrate", verbosity=0)
            urls, session = fill(versions, Path(home) / "made")
            with connection.cursor() as cursor:
                cursor.execute("ANALYZE")
            connection.close()
            with web() as port:
                rows = measure(port, urls, session, 3 if args.short else CALLS)
    publish(f"first byte of every page, {versions:,} versions", rows, args.out)


if __name__ == "__main__":
    main()
