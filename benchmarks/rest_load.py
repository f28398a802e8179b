"""50 clients that read and write through REST for 5 minutes on the embedded default: errors, p95, memory.

A client makes a call a second, which is how often ours looks while it waits. Three of ten calls write: a new adapter, a
changed description, a moved alias. Memory is what all processes of the product hold for themselves, after the first
fifth and at the end. The peers are the goals. The engine serves a tiny model, so that it leaves both cores to REST.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from statistics import quantiles
from typing import TYPE_CHECKING, Any

import aiohttp

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.control_loop import boot
from benchmarks.report import Row, arguments, publish
from tests.tiny_model import make_model, make_tokenizer

if TYPE_CHECKING:
    from tests.builders.product import Product

CLIENTS, SECONDS, WARM = 50, 300.0, 0.2
GOAL_MS, FLAT = 150.0, 1.1
READS = (
    "adapters/",
    "aliases/{name}/",
    "aliases/{name}/history/",
    "adapters/line/versions/",
    "rollouts/",
    "audit/events/?page_size=20",
    "training-runs/",
)


@dataclass
class Load:
    """What the clients saw: milliseconds by kind of call, and every answer that was no success."""

    served: list[str]
    until: float
    took_ms: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    errors: list[str] = field(default_factory=list)

    async def call(self, http: aiohttp.ClientSession, kind: str, method: str, path: str, body: Any = None) -> None:
        began = time.perf_counter()
        try:
            async with http.request(method, f"/api/v1/{path}", json=body) as answer:
                text = await answer.text()
        except (aiohttp.ClientError, TimeoutError) as error:
            self.errors.append(f"{method} {path}: {error!r}")
            return
        self.took_ms[kind].append((time.perf_counter() - began) * 1000)
        if answer.status >= 400:
            self.errors.append(f"{method} {path}: {answer.status} {text[:200]}")

    async def client(self, http: aiohttp.ClientSession, number: int) -> None:
        """One caller with an alias and an adapter of its own."""
        chance, name, at = random.Random(number), f"load-{number}", 0
        turn = time.perf_counter() + chance.random()
        while turn < self.until:
            await asyncio.sleep(max(0.0, turn - time.perf_counter()))
            turn = max(turn + 1, time.perf_counter())
            if chance.random() < 0.7:
                await self.call(http, "read", "GET", chance.choice(READS).format(name=name))
                continue
            at += 1
            await self.call(http, "write", *self.write(name, at))

    def write(self, name: str, at: int) -> tuple[str, str, Any]:
        """In turn: a new adapter, a changed description, a moved alias."""
        if at % 3 == 0:
            before, after = self.served if at % 2 else self.served[::-1]
            return "POST", f"aliases/{name}/move/", {"version": after, "expected_version": before, "reason": "load"}
        if at % 3 == 1:
            return "POST", "adapters/", {"project": "load", "slug": f"{name}-{at}", "base_model": "tiny"}
        return "PATCH", f"adapters/{name}-{at - 1}/", {"description": f"changed {at}"}


async def prepare(http: aiohttp.ClientSession, folder: Path) -> list[str]:
    """A base model, two versions that are ready, and an alias for each client; the served names."""
    from tests.builders import write_adapter

    await ask(http, "POST", "base-models/", {"slug": "tiny", "source": "tiny"})
    await until(http, "base-models/tiny/")
    await ask(http, "POST", "clusters/", {"project": "load", "slug": "load", "base_model": "tiny"})
    await ask(http, "POST", "adapters/", {"project": "load", "slug": "line", "base_model": "tiny"})
    names = []
    for number in (1, 2):
        upload_folder = write_adapter(folder / f"given-{number}", seed=number)
        form = aiohttp.FormData()
        for part, file in (("adapter_model", "adapter_model.safetensors"), ("adapter_config", "adapter_config.json")):
            form.add_field(part, (upload_folder / file).read_bytes(), filename=file)
        names.append((await ask(http, "POST", "adapters/line/versions/", data=form))["served_name"])
        await until(http, f"adapters/line/versions/{number}/")
    for number in range(CLIENTS):
        alias = {"project": "load", "name": f"load-{number}", "cluster": "load", "version": names[0]}
        await ask(http, "POST", "aliases/", alias)
    return names


async def ask(http: aiohttp.ClientSession, method: str, path: str, body: Any = None, data: Any = None) -> Any:
    async with http.request(method, f"/api/v1/{path}", json=body, data=data) as answer:
        if answer.status >= 400:
            raise RuntimeError(f"{path}: {await answer.text()}")
        return await answer.json()


async def until(http: aiohttp.ClientSession, path: str) -> None:
    while (await ask(http, "GET", path))["status"] != "ready":
        await asyncio.sleep(0.5)


async def run(product: Product, token: str, seconds: float) -> tuple[Load, int, int]:
    connector = aiohttp.TCPConnector(limit=CLIENTS)
    headers = {"Authorization": f"Bearer {token}"}
    async with aiohttp.ClientSession(product.web, connector=connector, headers=headers) as http:
        served = await prepare(http, product.home)
        load = Load(served, time.perf_counter() + seconds)
        clients = asyncio.gather(*(load.client(http, number) for number in range(CLIENTS)))
        await asyncio.sleep(seconds * WARM)
        before = await asyncio.to_thread(memory, product)
        await clients
    return load, before, memory(product)


def memory(product: Product) -> int:
    """Bytes that the product's processes do not share with others."""
    return sum(process.memory_full_info().uss for process in product.processes())


def rows(load: Load, before: int, after: int) -> list[Row]:
    p95 = {kind: quantiles(times_ms, n=20, method="inclusive")[18] for kind, times_ms in load.took_ms.items()}
    everything = [ms for times_ms in load.took_ms.values() for ms in times_ms]
    whole = quantiles(everything, n=20, method="inclusive")[18]
    latencies = [Row(f"p95 ms of a {kind}, {CLIENTS} clients", ms, GOAL_MS, GOAL_MS / ms) for kind, ms in p95.items()]
    return [
        Row(f"p95 ms of {len(everything)} calls, {CLIENTS} clients", whole, GOAL_MS, GOAL_MS / whole, 1.0),
        *latencies,
        Row("errors", len(load.errors), 0, float(not load.errors), 1.0),
        Row("memory MB at the end, and after the first fifth", after / 1e6, before / 1e6, before / after, 1 / FLAT),
    ]


def main() -> None:
    options = arguments(__doc__ or "")
    home = Path(tempfile.mkdtemp(prefix="adapterhub-load-", dir="/tmp"))
    make_model(inner=32).save_pretrained(home / "models" / "tiny")
    make_tokenizer().save_pretrained(home / "models" / "tiny")
    boot(str(home))
    from tests.builders.product import Product

    product = Product(home)
    try:
        product.start()
        product.manage("create_project", "load")
        scopes = [part for scope in ("read", "publish", "operate", "audit", "admin") for part in ("--scope", scope)]
        token = product.manage("create_token", "load", "--project", "load", *scopes)
        load, before, after = asyncio.run(run(product, token, 10.0 if options.short else SECONDS))
        sys.stderr.write("".join(f"{error}\n" for error in load.errors[:20]))
        publish("rest_load", rows(load, before, after), options.out)
    finally:
        for process in product.processes():
            process.kill()
        shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    main()
