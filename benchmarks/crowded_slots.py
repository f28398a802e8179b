"""64 adapters by Zipf's law through 16 slots: requests a second, how long they wait, loads a second. Simulated engines.

    python benchmarks/crowded_slots.py --out benchmarks/results/crowded_slots.json [--log FILE] [--sides SIDE,SIDE]

A real Postgres, Valkey, control worker with beat, and router stand before two simulated engines in vLLM's words, which
load one adapter at a time (LOAD_S), probe it (PROBE_S) and answer after ANSWER_S. 64 clients ask without a pause, each
alias at least once. The sides are the aliases' policies: every version on all replicas, or on one.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing import Process
from pathlib import Path
from typing import Any

import aiohttp
import uvloop

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.product_clients import Answer, Crowd, until
from benchmarks.product_figures import judged
from benchmarks.report import Row, arguments, publish
from benchmarks.router_sides import free_port, wait_for

LOAD_S, PROBE_S, ANSWER_S = 0.1, 0.05, 0.2
ADAPTERS, SLOTS, CLIENTS, REQUESTS, REPLICAS = 64, 16, 64, 640, 2
SIDES: dict[str, dict[str, int]] = {"all": {}, "one": {"replicas": 1}}
ROOT = Path(__file__).resolve().parents[1]


def serve(port: int) -> None:
    """Serve simulated engines behind one port: the first part of the path names the engine."""
    uvloop.run(serving(port))


async def serving(port: int) -> None:
    from aiohttp import web

    loaded: dict[str, dict[str, str]] = {}
    gates: dict[str, asyncio.Lock] = {}

    async def answer(request: web.Request) -> web.Response:
        engine, verb = request.match_info["engine"], request.match_info["verb"]
        adapters, gate = loaded.setdefault(engine, {}), gates.setdefault(engine, asyncio.Lock())
        body = await request.json() if request.can_read_body else {}
        match verb:
            case "v1/load_lora_adapter":
                async with gate:
                    await asyncio.sleep(LOAD_S)
                adapters[body["lora_name"]] = body["lora_path"]
                return web.Response(text="loaded")
            case "v1/unload_lora_adapter":
                is_held = adapters.pop(body["lora_name"], None) is not None
                return web.Response(text="unloaded") if is_held else web.json_response({}, status=404)
            case "v1/completions":
                return await completed(body, adapters)
            case "version":
                return web.json_response({"version": "0.33.0"})
        rows = [{"id": name, "root": path, "parent": "tiny"} for name, path in adapters.items()]
        return web.json_response({"data": [{"id": "tiny", "root": "tiny", "parent": None}, *rows]})

    async def completed(body: dict[str, Any], adapters: dict[str, str]) -> web.Response:
        if body["model"] not in adapters:
            message = f"The model `{body['model']}` does not exist."
            return web.json_response({"error": {"message": message, "type": "NotFoundError", "code": 404}}, status=404)
        await asyncio.sleep(PROBE_S if "logprobs" in body or "prompt_logprobs" in body else ANSWER_S)
        usage = {"prompt_tokens": 3, "completion_tokens": 32, "total_tokens": 35}
        choice = {"index": 0, "text": " word", "finish_reason": "length", "logprobs": None}
        answer = {"id": "a", "object": "text_completion", "model": body["model"], "choices": [choice], "usage": usage}
        return web.json_response(answer)

    app = web.Application()
    app.router.add_route("*", "/{engine}/{verb:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    await asyncio.Event().wait()


def boot(home: Path) -> None:
    """Set up Django on the embedded services of this folder, with a migrated database."""
    os.environ |= {"DJANGO_SETTINGS_MODULE": "adapterhub.settings", "ADAPTERHUB_HOME": str(home)}
    os.environ["ADAPTERHUB_ENGINE_HOSTS"] = "127.0.0.1"
    import django
    from django.core.management import call_command

    django.setup()
    call_command("migrate", verbosity=0)


def build(folder: Path, port: int) -> tuple[Any, str]:
    """Make a cluster of REPLICAS replicas, a version behind an alias for each adapter, and a token."""
    from adapterhub.accounts.models import ApiToken, Membership, Project
    from adapterhub.core.actor import system
    from registry.models import Adapter, AdapterVersion, Alias, BaseModel, Cluster, Replica
    from tests.builders import CONFIG, write_adapter
    from tests.builders.people import member

    by, project = system("benchmark"), Project.objects.create(slug="eu", name="eu")
    model = BaseModel.objects.create(slug="tiny", source="tiny")
    model.folder.mkdir(parents=True)
    (model.folder / "config.json").write_text(json.dumps(CONFIG))
    (model.folder / "tokenizer.json").write_text("{}")
    (model.folder / "model.safetensors").write_bytes(b"\2\0\0\0\0\0\0\0{}")
    model.inspect()
    cluster = Cluster.create(project=project, slug="gpu", base_model=model, by=by, max_loras=SLOTS)
    Replica.objects.bulk_create(
        Replica(cluster=cluster, url=f"http://127.0.0.1:{port}/e{number}") for number in range(REPLICAS)
    )
    for number in range(ADAPTERS):
        name = f"desk-{number}"
        adapter = Adapter.create(project=project, slug=name, base_model=model, by=by)
        version = AdapterVersion.publish(adapter, write_adapter(folder / name, seed=number), method="upload", by=by)
        Alias.create(project=project, name=name, cluster=cluster, version=version, policy={}, by=by)
    person = member("alice", project, Membership.Role.ADMIN)
    return cluster, ApiToken.issue(name="bench", project=project, scopes=["infer"], created_by=person)[1]


@contextmanager
def started(folder: Path, name: str, *command: str) -> Iterator[None]:
    """A process of the product while the block runs; its log lies in the folder."""
    with (folder / f"{name}.log").open("wb") as log:
        argv = [sys.executable, *command]
        env = os.environ | {"REMAP_SIGTERM": "SIGQUIT"}
        process = subprocess.Popen(argv, cwd=ROOT, stdout=log, stderr=log, env=env)  # noqa: S603 - our own arguments
        try:
            yield
        finally:
            process.terminate()
            process.wait(60)


def drawn(count: int) -> list[str]:
    """Return the aliases in the order in which they are asked: each once, the rest by Zipf's law, mixed."""
    names, dice = [f"desk-{number}" for number in range(ADAPTERS)], random.Random(0)
    weights = [1 / (place + 1) for place in range(ADAPTERS)]
    order = names + dice.choices(names, weights, k=count - ADAPTERS)
    dice.shuffle(order)
    return order


def loads_since(moment: Any) -> int:
    """Return the number of loads that the audit trail has since then."""
    from adapterhub.audit.models import AuditEvent
    from adapterhub.audit.tags import Tag

    return AuditEvent.objects.filter(tag=Tag.VERSION_LOADED, at__gte=moment).count()


async def crowded(router: str, token: str, count: int) -> list[Answer]:
    """Send the requests by 64 clients and return the answers."""
    connector, timeout = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(total=180)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        crowd = Crowd(session, router, token)

        async def is_ready() -> bool:
            return (await crowd.ask("desk-0")).status == 200

        await until(is_ready, "The first answer", 60)
        requests = [{"model": name, "prompt": "a", "tokens": 32, "user": "zipf"} for name in drawn(count)]
        return await crowd.all_of(requests, CLIENTS)


def measured(router: str, token: str, policy: dict[str, int], count: int) -> dict[str, Any]:
    """Figures of one side, whose aliases have this policy."""
    from django.utils.timezone import now

    from registry.models import Alias, Replica
    from registry.serving.routing_table import publish as publish_table

    Alias.objects.update(policy=policy)
    publish_table()
    began = now()
    answers = asyncio.run(crowded(router, token, count))
    seconds = max(each.ended for each in answers) - min(each.began for each in answers)
    slots_used = {replica.pk: len(replica.loaded) for replica in Replica.objects.all()}
    figures = judged(answers) | {"seconds": seconds, "requests_per_s": len(answers) / seconds, "slots_used": slots_used}
    loads = loads_since(began)
    return figures | {"loads": loads, "loads_per_s": loads / seconds, "versions": len(figures["versions"])}


def run(folder: Path, sides: list[str], count: int) -> dict[str, dict[str, Any]]:
    """Start everything, and measure each side."""
    from django.conf import settings

    engines, router = free_port(), free_port()
    with ExitStack() as stack:
        process = Process(target=serve, args=(engines,), daemon=True)
        process.start()
        stack.callback(process.kill)
        wait_for(engines)
        _, token = build(folder / "made", engines)
        beat = ("-B", "-s", str(folder / "beat"))
        worker = ("-m", "celery", "-A", "adapterhub", "worker", "-Q", "control", "--concurrency", "2", *beat)
        stack.enter_context(started(folder, "worker", *worker, "--loglevel", "INFO"))
        command = ("-m", "serving_client.router", "--redis-url", settings.REDIS_URL, "--port", str(router))
        command += ("--snapshot", str(folder / "table"))
        stack.enter_context(started(folder, "router", *command))
        wait_for(router)
        taken = {}
        for side in sides:
            taken[side] = measured(f"http://127.0.0.1:{router}", token, SIDES[side], count)
            sys.stdout.write(f"{time.strftime('%H:%M:%S')} {side}: {json.dumps(taken[side])}\n")
            sys.stdout.flush()
    return taken


def rows_of(taken: dict[str, dict[str, Any]]) -> list[Row]:
    """Failures and speed of each side."""
    rows = []
    for side, each in taken.items():
        good = each["requests"] - each["failed"]
        rows.append(Row(f"{side}: failed requests", each["failed"], each["requests"], good / each["requests"], 1.0))
        rows.append(Row(f"{side}: requests/s, loads/s", each["requests_per_s"], each["loads_per_s"], 1.0))
        rows.append(Row(f"{side}: ms p50, p95", each["p50_ms"], each["p95_ms"], 1.0))
    return rows


def main() -> None:
    options = arguments(__doc__ or "", "log", "sides")
    from adapterhub.embedded.postgres import EmbeddedPostgres
    from adapterhub.embedded.valkey import EmbeddedValkey

    sides = (options.sides or ",".join(SIDES)).split(",")
    with tempfile.TemporaryDirectory(prefix="adapterhub-bench-", dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o711)
        sys.stdout.write(f"{folder}\n")
        with EmbeddedPostgres(folder), EmbeddedValkey(folder):
            boot(folder)
            taken = run(folder, sides, ADAPTERS if options.short else REQUESTS)
    if options.log:
        Path(options.log).write_text(json.dumps(taken, indent=1) + "\n")
    publish("crowded_slots", rows_of(taken), options.out)


if __name__ == "__main__":
    main()
