"""Policies by which routers choose a replica: first token with shared system prompts, throughput under skew. On GPUs.

    python benchmarks/routing_policies.py --work DIR --tokenizer DIR --out FILE --log FILE [--gpus 2] [--vllm-path PATH]

Two vLLM servers (an 8B Llama of dummy weights, prefix cache on, room for about 30,000 tokens) behind one router at a
time: ours with `least_loaded` and with `prefix_affinity`, and vllm-router with `round_robin` and `cache_aware`. 64
clients send chats of 64 system prompts of about 700 tokens, each with a question of its own, and read 32 tokens as a
stream: all prompts equally often, and by Zipf's law. The sides take turns; each cell has prompts that no cell before it
had.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import aiohttp

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.product_clients import ENGINE_SETTINGS, Crowd, VllmServer, percentiles, speed
from benchmarks.report import Row, arguments, publish
from benchmarks.router_sides import free_port, wait_for
from serving_client.protocol import LEAST_LOADED, PREFIX_AFFINITY
from tests.fakes.routing import INFER, STABLE, make_table
from tests.fakes.stage import announce, running_valkey

CLIENTS, PROMPTS, REQUESTS, TOKENS, ROUNDS = 64, 64, 640, 32, 2
# About 700 tokens; the first words are the cell's and the prompt's own.
RULES = "The bank shall report each incident to the authority within four hours and name the person in charge. " * 34
CACHE_BYTES = 4 << 30
OURS = {"ours, least loaded": LEAST_LOADED, "ours, prefix affinity": PREFIX_AFFINITY}
PEERS = {"vllm-router round_robin": "round_robin", "vllm-router cache_aware": "cache_aware"}
SHAPES = {
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32},
    "tiny": {"hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 2},
}


def write_model(folder: Path, tokenizer: Path, shape: str) -> None:
    """A Llama without weights, with another model's tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 49152, "rms_norm_eps": 1e-5}
    config |= {"num_key_value_heads": 8 if shape == "8b" else 1, "max_position_embeddings": 8192, "hidden_act": "silu"}
    config |= {"torch_dtype": "bfloat16", "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2}
    (folder / "config.json").write_text(json.dumps(config | SHAPES[shape]))
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(tokenizer / name, folder)


def servers(options: Any, work: Path) -> list[VllmServer]:
    """Two servers, each on a GPU of its own if there are two."""
    command = [options.vllm_python or sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model"]
    command += [str(work / "model"), "--load-format", "dummy", "--served-model-name", STABLE, "--host", "127.0.0.1"]
    command += ["--max-model-len", "2048", "--max-num-seqs", str(CLIENTS), "--enforce-eager"]
    settings = ENGINE_SETTINGS | ({"PYTHONPATH": options.vllm_path} if options.vllm_path else {})
    if options.device == "cpu":
        command += ["--dtype", "float32"]
        settings |= {"VLLM_CPU_KVCACHE_SPACE": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    else:
        command += [
            "--dtype",
            "bfloat16",
            "--gpu-memory-utilization",
            "0.3",
            "--kv-cache-memory-bytes",
            str(CACHE_BYTES),
        ]
    gpus = int(options.gpus or 1)
    return [
        VllmServer(
            f"vllm-{place}",
            18300 + place,
            command,
            settings | {"CUDA_VISIBLE_DEVICES": str(place % gpus)},
            work / f"vllm-{place}.log",
        )
        for place in range(2)
    ]


@contextmanager
def started(command: list[str], port: int) -> Iterator[str]:
    """The address of a router while the block runs."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # noqa: S603
    try:
        wait_for(port)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


@contextmanager
def side(name: str, urls: list[str], work: Path) -> Iterator[str]:
    """The address of the side's router in front of the replicas, started for one cell."""
    port = free_port()
    with ExitStack() as stack:
        if name in PEERS:
            router = shutil.which("vllm-router") or "vllm-router"
            command = [router, "--worker-urls", *urls, "--policy", PEERS[name], "--port", str(port)]
            command += ["--host", "127.0.0.1", "--log-level", "error", "--prometheus-port", str(free_port())]
        else:
            valkey = stack.enter_context(running_valkey())
            table = make_table(*urls)
            versions = {served: replace(each, routing=OURS[name]) for served, each in table.versions.items()}
            announce(valkey, replace(table, versions=versions))
            command = [sys.executable, "-m", "serving_client.router", "--redis-url", valkey.url, "--port", str(port)]
            command += ["--snapshot", str(work / f"table-{port}")]
        yield stack.enter_context(started(command, port))


def chats(cell: str, is_skewed: bool) -> list[dict[str, Any]]:
    """Requests in the order in which they are sent; `cell` makes the prompts new to the caches."""
    dice = random.Random(0)
    weights = [1 / (place + 1) if is_skewed else 1 for place in range(PROMPTS)]
    chosen = dice.choices(range(PROMPTS), weights, k=REQUESTS)
    return [
        {
            "model": STABLE,
            "messages": [
                {"role": "system", "content": f"Desk {place} of {cell}. {RULES}"},
                {"role": "user", "content": f"Question {number}: what does desk {place} do first?"},
            ],
            "tokens": TOKENS,
            "stream": True,
        }
        for number, place in enumerate(chosen)
    ]


async def measured(session: aiohttp.ClientSession, url: str, cell: str, is_skewed: bool) -> dict[str, float]:
    """Measure what 64 clients see: milliseconds to the first token, requests and tokens a second, failures."""
    crowd = Crowd(session, url, INFER["Authorization"].removeprefix("Bearer "))
    answers = await crowd.all_of(chats(cell, is_skewed), CLIENTS)
    good = [each for each in answers if each.status == 200]
    if not good:
        raise RuntimeError(f"{cell}: {answers[0].status} {answers[0].text}")
    seconds = max(each.ended for each in answers) - min(each.began for each in answers)
    first = percentiles([each.first - each.began for each in good])
    figures = {"failed": len(answers) - len(good), "requests_per_s": len(good) / seconds, "tokens_per_s": speed(good)}
    return figures | {f"first_{name}": value for name, value in first.items()}


async def main() -> None:
    options = arguments(__doc__ or "", "log", "work", "tokenizer", "gpus", "device", "vllm-python", "vllm-path")
    work, log = Path(options.work), Path(options.log)
    write_model(work / "model", Path(options.tokenizer), "tiny" if options.device == "cpu" else "8b")
    fleet, taken = servers(options, work), defaultdict(list)
    names = [*OURS, *(PEERS if shutil.which("vllm-router") else {})]
    os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    timeout = aiohttp.ClientTimeout(total=300)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session:
        try:
            for server in fleet:
                server.start()
            sys.stdout.write(f"started in {[round(await each.ready(session)) for each in fleet]} s\n")
            for turn in range(1 if options.short else ROUNDS + 1):  # the first round warms up the servers
                for name in names[turn % len(names) :] + names[: turn % len(names)]:
                    for is_skewed in (False, True):
                        with side(name, [each.url for each in fleet], work) as url:
                            figures = await measured(session, url, f"{name} {turn} {is_skewed}", is_skewed)
                        cell = f"{name}, {'Zipf' if is_skewed else 'even'}"
                        taken[cell] += [figures] if turn or options.short else []
                        sys.stdout.write(f"{turn} {cell}: {json.dumps(figures)}\n")
                        sys.stdout.flush()
                        log.write_text(json.dumps(taken, indent=1) + "\n")
        finally:
            for server in fleet:
                server.kill()
    publish("routing_policies", rows_of(taken), options.out)


def rows_of(taken: dict[str, list[dict[str, float]]]) -> list[Row]:
    """Prefix affinity against each other side: milliseconds to the first token (peer over ours), requests a second."""
    rows = []
    for load in ("even", "Zipf"):
        ours = taken[f"ours, prefix affinity, {load}"]
        for name in (each.rpartition(", ")[0] for each in taken if each.endswith(f", {load}")):
            if name == "ours, prefix affinity":
                continue
            for figure in ("first_p50_ms", "first_p95_ms", "requests_per_s"):
                own, peer = (median(each[figure] for each in side) for side in (ours, taken[f"{name}, {load}"]))
                ratio = own / peer if figure == "requests_per_s" else peer / own
                rows.append(Row(f"{figure}, {load}, prefix affinity against {name}", own, peer, ratio))
    return rows


if __name__ == "__main__":
    asyncio.run(main())
