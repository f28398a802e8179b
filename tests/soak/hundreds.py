"""Many adapters of one base model behind an alias each, asked for by Zipf's law and held to PEFT's answers."""

from __future__ import annotations

import json
import random
import shutil
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from django.db import connection
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from adapterhub.accounts.models import User
from adapterhub.audit.models import AuditEvent
from adapterhub.audit.tags import Tag
from registry.models import Adapter, AdapterVersion, Alias, Cluster
from registry.rollouts.outcome_ingest import collect
from registry.serving.reconciler import reconcile
from registry.serving.routing_table import publish
from registry.serving.valkey import valkey
from serving_client.protocol import WANTS
from tests.byte_llama import LINEARS, tokenizer

RANKS = (4, 8, 12, 16, 24, 32, 40, 48, 56, 64, 4, 16)
WHO = (
    "bank",
    "fund",
    "broker",
    "insurer",
    "trustee",
    "agent",
    "auditor",
    "issuer",
    "dealer",
    "lender",
    "adviser",
    "clerk",
)
TEXTS = [
    f"Rule {number}: the {who} shall report each incident within {number + 2} hours. " for number, who in enumerate(WHO)
]
STEPS, NOISE = 12, 0.05
PROMPT, COUNT = "Rule ", 8
CLIENTS = 8


@dataclass(frozen=True)
class Size:
    """Of `adapters`, each phase asks `requests` times for the first so many."""

    adapters: int
    slots: int
    requests: int
    phases: tuple[int, ...]


@dataclass(frozen=True)
class Expected:
    """PEFT's greedy answer: its tokens, their text, and the logits that each was chosen by."""

    ids: list[int]
    text: str
    logits: torch.Tensor


def trained(model_folder: Path, folder: Path, number: int) -> Path:
    """A few steps on a text of its own."""
    torch.manual_seed(number)
    rank = RANKS[number]
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=LINEARS, task_type="CAUSAL_LM")
    model = get_peft_model(LlamaForCausalLM.from_pretrained(model_folder), config)
    optimiser = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=1e-2)
    ids = torch.tensor([tokenizer()(TEXTS[number] * 2)["input_ids"]])
    for _ in range(STEPS):
        model(input_ids=ids, labels=ids).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    model.save_pretrained(folder)
    (folder / "README.md").unlink()
    return folder


def perturbed(source: Path, folder: Path, seed: int) -> Path:
    """Another adapter near a trained one."""
    folder.mkdir()
    shutil.copy(source / "adapter_config.json", folder)
    torch.manual_seed(seed)
    tensors = load_file(source / "adapter_model.safetensors")
    save_file(
        {name: weight + NOISE * torch.randn_like(weight) for name, weight in tensors.items()},
        folder / "adapter_model.safetensors",
    )
    return folder


def many(model_folder: Path, root: Path, count: int) -> list[Path]:
    """A dozen trained on different texts, the rest near one of them."""
    folders = [trained(model_folder, root / f"trained-{number}", number) for number in range(len(RANKS))]
    near = (
        perturbed(folders[number % len(RANKS)], root / f"perturbed-{number}", number)
        for number in range(len(RANKS), count)
    )
    return [*folders, *near][:count]


def peft_answers(model_folder: Path, folders: list[Path]) -> list[Expected]:
    """Without a cache, one adapter after the other."""
    base: Any = LlamaForCausalLM.from_pretrained(model_folder)
    model = PeftModel.from_pretrained(base, folders[0], adapter_name="0")
    answers = []
    for number, folder in enumerate(folders):
        if number:
            model.load_adapter(folder, adapter_name=str(number))
            model.set_adapter(str(number))
            model.delete_adapter(str(number - 1))
        answers.append(peft_answer(model))
    return answers


def peft_answer(model: Any) -> Expected:
    words, rows = tokenizer(), []
    ids = list(words(PROMPT)["input_ids"])
    with torch.inference_mode():
        for _ in range(COUNT):
            rows.append(model(input_ids=torch.tensor([ids])).logits[0, -1])
            ids.append(int(rows[-1].argmax()))
    text = words.decode(ids[-COUNT:], skip_special_tokens=True)
    return Expected(ids[-COUNT:], text, torch.stack(rows))


class Loop(threading.Thread):
    """The control loop and the reports' collector, as a worker runs them."""

    def __init__(self) -> None:
        super().__init__()
        self.is_over = threading.Event()
        self.failure: Exception | None = None

    def run(self) -> None:
        try:
            while not self.is_over.wait(0.1):
                collect()
                reconcile()
        except Exception as error:  # noqa: BLE001 - told by the test
            self.failure = error
        finally:
            connection.close()

    def stop(self) -> None:
        self.is_over.set()
        self.join()
        if self.failure:
            raise self.failure


@contextmanager
def control_loop() -> Iterator[Callable[[], None]]:
    """Hand out what starts a control loop, and end it with the block."""
    loop = Loop()
    try:
        yield loop.start
    finally:
        if loop.ident:
            loop.stop()


@dataclass
class Traffic:
    """Every answer is held to PEFT's by `is_right`."""

    router: str
    token: str
    expected: dict[str, Expected]
    is_right: Callable[[Expected, dict[str, Any]], bool]

    def ask(self, client: httpx.Client, name: str) -> float:
        """Milliseconds."""
        body = {
            "model": name,
            "prompt": PROMPT,
            "max_tokens": COUNT,
            "temperature": 0,
            "ignore_eos": True,
            "return_token_ids": True,
        }
        began = time.perf_counter()
        answer = client.post("/v1/completions", json=body)
        assert answer.status_code == 200, f"{name}: {answer.text}"
        choice = answer.json()["choices"][0]
        assert self.is_right(self.expected[name], choice), (name, choice, self.expected[name].text)
        return (time.perf_counter() - began) * 1000

    def run(self, names: list[str]) -> tuple[list[float], float]:
        """Latencies in milliseconds and tokens a second."""
        headers = {"Authorization": f"Bearer {self.token}"}
        with httpx.Client(base_url=self.router, headers=headers, timeout=120) as client:
            began = time.perf_counter()
            with ThreadPoolExecutor(CLIENTS) as threads:
                latencies = list(threads.map(lambda name: self.ask(client, name), names))
        return latencies, len(names) * COUNT / (time.perf_counter() - began)


def zipf(names: list[str], count: int) -> list[str]:
    """Each name once, the rest by 1/rank, mixed."""
    dice = random.Random(0)
    sample = names + dice.choices(names, [1 / (place + 1) for place in range(len(names))], k=count - len(names))
    dice.shuffle(sample)
    return sample


def waited(router: str) -> int:
    """Requests that waited for a load."""
    lines = httpx.get(f"{router}/metrics").text.splitlines()
    return int(float(next(line.split()[1] for line in lines if line.startswith("adapterhub_load_wait_seconds_count"))))


def cold_loads_s() -> list[float]:
    """From each want to the version's next load."""
    loads: dict[str, list[float]] = {}
    for event in AuditEvent.objects.filter(tag=Tag.VERSION_LOADED).order_by("at"):
        loads.setdefault(event.after["version"], []).append(event.at.timestamp())
    with valkey() as client:
        wants = [
            (fields[b"version"].decode(), int(entry.split(b"-")[0]) / 1000) for entry, fields in client.xrange(WANTS)
        ]
    loads_s = (next((at - since for at in loads.get(name, []) if at > since), None) for name, since in wants)
    return [seconds for seconds in loads_s if seconds is not None]


def behind_aliases(folders: list[Path], cluster: Cluster, alice: User) -> list[str]:
    """A version and an alias of each folder; the aliases' names."""
    by, names = alice.as_actor(), [f"alias-{number}" for number in range(len(folders))]
    for name, folder in zip(names, folders, strict=True):
        adapter = Adapter.create(project=cluster.project, slug=name, base_model=cluster.base_model, by=by)
        version = AdapterVersion.publish(adapter, folder, method="upload", by=by)
        Alias.create(project=cluster.project, name=name, cluster=cluster, version=version, policy={}, by=by)
    publish()
    return names


def figures(traffic: Traffic, names: list[str], size: Size) -> Iterator[dict[str, float]]:
    """One line a phase, and one of the cold loads of all."""
    for count in size.phases:
        names_asked = zipf(names[:count], size.requests)
        before = waited(traffic.router)
        latencies, speed = traffic.run(names_asked)
        hits = 1 - (waited(traffic.router) - before) / len(names_asked)
        quantiles = statistics.quantiles(latencies, n=100)
        yield {
            "adapters": count,
            "requests": len(names_asked),
            "hit_rate": round(hits, 3),
            "tokens_s": round(speed, 1),
            "p50_ms": round(quantiles[49]),
            "p95_ms": round(quantiles[94]),
        }
    loads = cold_loads_s()
    yield {
        "cold_loads": len(loads),
        "p50_s": round(statistics.median(loads), 2),
        "p95_s": round(statistics.quantiles(loads, n=100)[94], 2),
    }


def show(lines: list[dict[str, float]], capsys: pytest.CaptureFixture[str]) -> None:
    """The figures of docs/benchmarks.md."""
    with capsys.disabled():
        for line in lines:
            print(json.dumps(line))  # noqa: T201


@dataclass
class Fleet:
    """What both kinds of engine are given and asked."""

    size: Size
    cluster: Cluster
    model_folder: Path
    alice: User
    router: str
    token: str
    folder: Path
    start_loop: Callable[[], None]

    def check_answers(
        self, is_right: Callable[[Expected, dict[str, Any]], bool], capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Every alias answers as PEFT does; the figures are shown."""
        folders = many(self.model_folder, self.folder, self.size.adapters)
        expected = peft_answers(self.model_folder, folders)
        different = len({answer.text for answer in expected})
        assert different > self.size.adapters / 2, "adapters must differ to prove anything"
        names = behind_aliases(folders, self.cluster, self.alice)
        self.start_loop()
        traffic = Traffic(self.router, self.token, dict(zip(names, expected, strict=True)), is_right)
        show(list(figures(traffic, names, self.size)), capsys)
