"""The whole product over real vLLM servers on a GPU: trained, rolled out under load, promoted, rolled back, crowded.

    python benchmarks/whole_product.py --home DIR --out FILE --log FILE [--vllm-python PYTHON] [--vllm-path PATH]

Starts Postgres, Valkey, web, workers and router as `make run` does, and four vLLM servers on the GPUs: two with the
wheel adapterhub-vllm and two without. SmolLM2-135M-Instruct is trained twice on European law by the gpu-worker, with
uniform and with planned ranks. 64 clients ask while the second version is rolled out, promoted and rolled back, and
while one server is killed. Then 64 adapters share 16 slots by Zipf's law, each on all servers and each on one, with and
without the plugin. One GPU holds all servers; `--gpus 2` takes two. `make demo-gpu` runs it in one piece. The servers'
environment may be another one (`--vllm-python`, `--vllm-path` for its PYTHONPATH). `--device cpu` tries the script out
with one server; `--clients`, `--adapters` and `--steps` of the training take fewer.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
import zipfile
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from adapterhub.client import AsyncClient, calls, fleet
from adapterhub.demo.__main__ import USER, connect, manage
from adapterhub.demo.input_data import prepare_dataset, prepare_model
from adapterhub.demo.walkthrough import ANALYSIS, HYPERPARAMETERS, PROJECT
from adapterhub.embedded.layout import Layout
from adapterhub.embedded.options import DEFAULT_MODEL, Options
from benchmarks.product_clients import Answer, Crowd, percentiles, speed, until
from benchmarks.product_figures import HOT, judged, perturbed, rows_of, switched, unsteady
from benchmarks.product_servers import MAX_RANK, PORT, ROUTER_PORT, SLOTS, settings_of, vllm_servers
from benchmarks.report import arguments, publish
from training import hardware

TOKENS, LONG = 32, 128
SCOPES = ("read", "train", "publish", "operate", "infer", "audit", "admin")
ADAPTER, ALIAS, CLUSTER = "eu-compliance", "compliance", "gpu"
PROMPTS = [f"GDPR, Article {number} (1): " for number in range(5, 45)]
Figures = dict[str, Any]


class Product:
    """The installation, its fleet and what was measured of them."""

    def __init__(self, options: Any, session: aiohttp.ClientSession) -> None:
        self.home = Path(options.home)
        self.is_cpu = options.device == "cpu"
        self.clients, self.adapters = int(options.clients or 64), int(options.adapters or 64)
        self.hyperparameters = HYPERPARAMETERS | ({"steps": int(options.steps)} if options.steps else {})
        self.is_short = bool(options.short)
        self.log = Path(options.log)
        self.session = session
        self.figures: Figures = {}
        self.servers = vllm_servers(options, self.home, self.model, self.clients)

    @property
    def model(self) -> Path:
        return Layout(self.home).models / DEFAULT_MODEL

    def note(self, name: str, **figures: Any) -> None:
        """Keep figures, print them, and write all of them to the log."""
        self.figures.setdefault(name, {}).update(figures)
        sys.stdout.write(f"{time.strftime('%H:%M:%S')} {name}: {json.dumps(figures)[:1500]}\n")
        sys.stdout.flush()
        self.log.write_text(json.dumps(self.figures, indent=1) + "\n")

    async def start(self) -> None:
        """Start the product; the servers of vLLM come up while versions are trained."""
        began = time.monotonic()
        Layout(self.home).create()
        prepare_model(self.home)
        self.dataset_file = prepare_dataset(self.home)
        self.note("start", inputs_s=time.monotonic() - began)
        for server in self.servers[:1] if self.is_cpu else self.servers[:2]:
            server.start()
        with (self.home / "product.log").open("wb") as log:
            self.installation = subprocess.Popen(
                [sys.executable, "-m", "adapterhub.embedded", "run"],
                cwd=Path(__file__).resolve().parents[1],
                stdout=log,
                stderr=log,
            )
        await until(lambda: self.answers(f"http://127.0.0.1:{PORT}/healthz"), "The start of the product", 300)
        await until(lambda: self.answers(f"http://127.0.0.1:{ROUTER_PORT}/healthz"), "The start of the router", 300)
        options = Options.from_environ()
        await asyncio.to_thread(connect, options, f"http://127.0.0.1:{PORT}")
        scopes = [part for scope in SCOPES for part in ("--scope", scope)]
        self.token = manage("create_token", "bench", "--project", PROJECT, "--person", USER, *scopes).strip()
        self.hub = AsyncClient(f"http://127.0.0.1:{PORT}", self.token)
        self.crowd = Crowd(self.session, f"http://127.0.0.1:{ROUTER_PORT}", self.token)
        self.note("start", product_s=time.monotonic() - began)

    async def answers(self, url: str) -> bool:
        try:
            async with self.session.get(url) as answer:
                return answer.status == 200
        except aiohttp.ClientError:
            return False

    async def train(self) -> None:
        """Two versions as the demo trains them: uniform ranks, and ranks that an analysis planned."""
        base = calls.post("base-models/", slug=DEFAULT_MODEL, source=DEFAULT_MODEL)
        await self.hub.wait(calls.following(base, lambda _: calls.get(f"base-models/{DEFAULT_MODEL}/")))
        dataset = await self.hub.wait(calls.upload_dataset(PROJECT, self.dataset_file))
        await self.hub.send(calls.create_adapter(PROJECT, ADAPTER, DEFAULT_MODEL))
        began = time.monotonic()
        run = calls.train(PROJECT, ADAPTER, dataset["id"], hyperparameters=self.hyperparameters)
        self.stable = str((await self.hub.wait(run, 900))["version"])
        uniform_s, began = time.monotonic() - began, time.monotonic()
        settings = {name: value for name, value in ANALYSIS.items() if name != "budget"}
        analysis = calls.analyze(PROJECT, DEFAULT_MODEL, dataset["id"], ANALYSIS["budget"], **settings)
        plan = await self.hub.wait(analysis, 900)
        analysis_s, began = time.monotonic() - began, time.monotonic()
        run = calls.train(
            PROJECT, ADAPTER, dataset["id"], rank_analysis=plan["id"], hyperparameters=self.hyperparameters
        )
        self.candidate = str((await self.hub.wait(run, 900))["version"])
        self.note(
            "train",
            device=hardware.detect(self.home)[0].name,
            uniform_s=uniform_s,
            analysis_s=analysis_s,
            planned_s=time.monotonic() - began,
            loss=[(await self.hub.send(calls.version(ADAPTER, number)))["metrics"] for number in (1, 2)],
        )

    async def serve(self) -> None:
        """The first version behind the alias, on both servers that have the plugin."""
        running = [server for server in self.servers if server.process]
        self.note("start", **{f"{each.name}_s": await each.ready(self.session) for each in running})
        cluster = fleet.create_cluster(
            PROJECT, CLUSTER, DEFAULT_MODEL, engine="vllm", max_lora_rank=MAX_RANK, max_loras=SLOTS
        )
        await self.hub.send(cluster)
        for server in running[:2]:
            await self.hub.send(fleet.add_replica(CLUSTER, server.url))
        began = time.monotonic()
        await self.hub.send(calls.create_alias(PROJECT, ALIAS, CLUSTER, self.stable, {}))
        await self.loaded(self.stable, [each.url for each in running[:2]])
        self.note("serve", first_load_s=time.monotonic() - began)

    async def loaded(self, version: str, urls: list[str], timeout_s: float = 120.0) -> float:
        """Seconds until exactly these replicas are healthy and hold the version."""

        async def is_held() -> bool:
            state = await self.hub.send(fleet.cluster_state(CLUSTER))
            holding = {row["url"] for row in state if row["is_healthy"] and version in row["observed"]}
            return holding >= set(urls)

        return await until(is_held, f"Loading {version}", timeout_s, 0.1)

    async def healthy(self, urls: list[str]) -> float:
        """Seconds until these replicas answer."""

        async def are_healthy() -> bool:
            state = await self.hub.send(fleet.cluster_state(CLUSTER))
            return {row["url"] for row in state if row["is_healthy"]} >= set(urls)

        return await until(are_healthy, "The other replicas", 120, 0.1)

    async def roll_out(self) -> None:
        """v1 against v2 at 50 %, the promotion and the way back while 64 clients ask."""
        crowd, moments = self.crowd, {}
        crowd.answers.clear()
        async with crowd.asking(self.clients, ALIAS, PROMPTS, TOKENS):
            await asyncio.sleep(3)
            began = time.monotonic()
            opening = calls.open_rollout(ALIAS, self.candidate, [{"weight": 50}], "planned ranks against uniform")
            rollout = await self.hub.wait(opening, 120, until="running")
            rollout_s = time.monotonic() - began
            await asyncio.sleep(8)
            for verb, call in (("promotion", calls.promote), ("rollback", calls.roll_back)):
                moments[verb] = time.monotonic()
                rollout = await self.hub.send(call(rollout, "the benchmark goes on"))
                moments[f"{verb} answered"] = time.monotonic()
                await asyncio.sleep(6)
        first_candidate = min(each.began for each in crowd.answers if each.version == self.candidate)
        self.note(
            "rollout",
            until_running_s=rollout_s,
            until_first_candidate_s=first_candidate - began,
            **judged(crowd.answers),
            **switched(crowd.answers, moments, self.stable, self.candidate),
            unsteady_users=len(unsteady(crowd.answers, moments["promotion"])),
            arms=dict(Counter(each.arm for each in crowd.answers)),
        )

    async def lose_a_server(self) -> None:
        """One of two servers is killed under load, and started again."""
        lost = self.servers[0]
        self.crowd.answers.clear()
        async with self.crowd.asking(self.clients, ALIAS, PROMPTS, TOKENS):
            await asyncio.sleep(3)
            killed = time.monotonic()
            lost.kill()
            await asyncio.sleep(5)
            lost.start()
            ready_s = await lost.ready(self.session)
            await self.loaded(self.stable, [each.url for each in self.servers[:2]], 60)
            back = time.monotonic()
            await asyncio.sleep(3)
        slowest = max(each.ended - each.began for each in self.crowd.answers if each.began >= killed - 1)
        self.note(
            "killed",
            restart_s=ready_s,
            healed_s=back - killed,
            slowest_s=slowest,
            wrong=sum(each.version != self.stable for each in self.crowd.answers if each.status == 200),
            **judged(self.crowd.answers),
        )

    async def overhead(self) -> None:
        """Streams straight to the servers, half of the clients each, and through the router, in turns."""
        direct = [Crowd(self.session, each.url, "") for each in self.servers[:2] if each.process]
        taken: dict[str, list[Answer]] = defaultdict(list)
        for clients, rounds in ((1, 20 if self.is_short else 60), (self.clients, 3 if self.is_short else 6)):
            for turn in range(rounds):
                for name in ("direct", "router"):
                    crowds = [self.crowd] if name == "router" else direct if clients > 1 else direct[:1]
                    share = clients // len(crowds)
                    waves = []
                    for crowd in crowds:
                        model = ALIAS if name == "router" else self.stable
                        prompts = [f"{name} {turn}, {crowd.url}, Article {place}: " for place in range(4 * share)]
                        requests = [
                            {"model": model, "prompt": each, "tokens": TOKENS, "stream": True} for each in prompts
                        ]
                        waves.append(crowd.all_of(requests, share))
                    for answers in await asyncio.gather(*waves):
                        taken[f"{name}, {clients} clients"] += answers
        for name, answers in taken.items():
            self.note(
                f"overhead, {name}",
                failed=sum(each.status != 200 for each in answers),
                first=percentiles([each.first - each.began for each in answers if each.first]),
                whole=percentiles([each.ended - each.began for each in answers if each.first]),
            )

    async def publish_many(self) -> None:
        """64 adapters near the two trained ones, uploaded while servers start; they get aliases later."""
        for server in () if self.is_cpu else self.servers[2:]:
            server.start()
        began = time.monotonic()
        sources = []
        for number in (1, 2):
            folder = self.home / f"source-{number}"
            content = await self.hub.send(calls.download(ADAPTER, number))
            zipfile.ZipFile(io.BytesIO(content)).extractall(folder)
            sources.append(next(folder.rglob("adapter_config.json")).parent)

        async def put(number: int) -> str:
            folder = await asyncio.to_thread(perturbed, sources[number % 2], self.home / f"many-{number}", number)
            await self.hub.send(calls.create_adapter(PROJECT, f"desk-{number}", DEFAULT_MODEL))
            version = await self.hub.wait(calls.push(f"desk-{number}", folder), 300)
            return str(version["served_name"])

        self.many = await self.each_adapter(put)
        self.note("publish", versions=len(self.many), seconds=time.monotonic() - began)

    async def put_behind_aliases(self) -> None:
        """An alias of its own for each of the 64 adapters."""
        began = time.monotonic()
        await self.each_adapter(
            lambda number: self.hub.send(calls.create_alias(PROJECT, f"desk-{number}", CLUSTER, self.many[number], {}))
        )
        self.note("publish", aliases_s=time.monotonic() - began)

    async def place(self, copies: int | None) -> None:
        """Let so many servers hold each adapter, all of them without a number."""
        policy = {"replicas": copies} if copies else {}
        await self.each_adapter(lambda number: self.hub.send(calls.set_policy(f"desk-{number}", policy)))

    async def each_adapter(self, work: Callable[[int], Awaitable[Any]]) -> list[Any]:
        """What `work` returns for each of the 64, eight at once."""
        gate = asyncio.Semaphore(8)

        async def one(number: int) -> Any:
            async with gate:
                return await work(number)

        return await asyncio.gather(*(one(number) for number in range(self.adapters)))

    async def crowded(self, side: str) -> None:
        """The 64 adapters by Zipf's law: every adapter on all servers, then each on one; and batches of hot ones."""
        await self.place(None)
        await self.zipf(f"{side}, all")
        await self.hot(side)
        await self.place(1)
        await self.zipf(f"{side}, one")

    async def zipf(self, side: str) -> None:
        """64 adapters by Zipf's law through 16 slots of each server."""
        names = [f"desk-{number}" for number in range(self.adapters)]
        dice = random.Random(0)
        drawn = names + dice.choices(names, [1 / (place + 1) for place in range(self.adapters)], k=9 * self.adapters)
        dice.shuffle(drawn)
        requests = [{"model": name, "prompt": PROMPTS[0], "tokens": TOKENS, "user": "zipf"} for name in drawn]
        waited, began = await self.cold_waits(), time.monotonic()
        answers = await self.crowd.all_of(requests, self.clients)
        seconds, waited = time.monotonic() - began, await self.cold_waits() - waited
        wrong = sum(each.version != self.many[int(each.alias[5:])] for each in answers if each.status == 200)
        self.note(f"zipf, {side}", waited_for_a_load=waited, wrong=wrong, seconds=seconds, **judged(answers))

    async def hot(self, side: str) -> None:
        """Batches of one and of 12 adapters, in which nothing is loaded."""
        for hot in (1, HOT):
            speeds = []
            for turn in range(4):
                requests = [
                    {
                        "model": f"desk-{place % hot}",
                        "prompt": f"DORA, Article {turn} ({place}): ",
                        "tokens": LONG,
                        "user": f"user-{place}",
                    }
                    for place in range(4 * self.clients)
                ]
                answers = await self.crowd.all_of(requests, self.clients)
                speeds += [speed([each for each in answers if each.status == 200])] if turn else []
            failed = sum(each.status != 200 for each in answers)
            self.note(f"hot {hot}, {side}", failed=failed, tokens_per_s=speeds)

    async def cold_waits(self) -> int:
        """Requests that have waited for a load."""
        headers = {"Authorization": f"Bearer {self.token}"}
        async with self.session.get(f"{self.crowd.url}/metrics", headers=headers) as answer:
            lines = (await answer.text()).splitlines()
        name = "adapterhub_load_wait_seconds_count"
        return int(sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name)))

    async def without_plugin(self) -> None:
        """The same through servers without the plugin: the replicas are given the addresses of the other two."""
        replicas = (await self.hub.send(fleet.replicas(cluster=CLUSTER)))["results"]
        stock = [each.url for each in self.servers[2:]]
        for replica, url in zip(sorted(replicas, key=lambda each: str(each["url"])), stock, strict=True):
            await self.hub.send(fleet.change_replica(replica["id"], url, "without the plugin"))
        moved_s = await self.healthy(stock)
        self.note("moved", seconds=moved_s)
        await self.crowded("stock")

    async def evidence(self) -> None:
        """Record what the product itself found: served against PEFT, alarms, the audit trail."""
        compared = [
            await self.hub.send(calls.get(f"adapters/{ADAPTER}/versions/{number}/served-comparisons/"))
            for number in (1, 2)
        ]
        verdict = await self.hub.send(calls.verify_audit(PROJECT))
        self.note("evidence", compared=compared, audit=verdict)

    def stop(self) -> None:
        for server in self.servers:
            server.kill()
        if hasattr(self, "installation"):
            self.installation.terminate()
            self.installation.wait(60)


async def main() -> None:
    options = arguments(
        __doc__ or "", "home", "log", "vllm-python", "vllm-path", "device", "gpus", "clients", "adapters", "steps"
    )
    os.environ |= settings_of(options)
    if task := asyncio.current_task():
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=180)) as session:
        product = Product(options, session)
        stages: list[Callable[[], Awaitable[None]]] = [product.start, product.train, product.publish_many]
        stages += [product.serve, product.roll_out, product.overhead]
        stages += [] if product.is_cpu or options.short else [product.lose_a_server]
        stages += [product.put_behind_aliases, lambda: product.crowded("plugin")]
        stages += [product.evidence] if product.is_cpu else [product.without_plugin, product.evidence]
        try:
            for stage in stages:
                began = time.monotonic()
                await stage()
                product.note("stages", **{str(getattr(stage, "__name__", "crowded")): time.monotonic() - began})
        finally:
            product.stop()
            publish("whole_product", rows_of(product.figures), options.out)


if __name__ == "__main__":
    asyncio.run(main())
