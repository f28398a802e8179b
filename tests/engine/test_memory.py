"""Weights beyond the memory limit are read again when they are asked for."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from serving_client.engine import engine as engine_module
from serving_client.engine.engine import Engine

PROMPT = list(b"The bank shall")


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the adapters that were read from disk."""
    names: list[str] = []
    real = engine_module.read_adapter

    def read(name: str, *args: Any, **fields: Any) -> Any:
        names.append(name)
        return real(name, *args, **fields)

    monkeypatch.setattr(engine_module, "read_adapter", read)
    return names


async def test_the_least_recently_used_is_evicted_and_read_again(
    make_engine: Callable[..., Engine],
    serve: Callable[[Engine], Any],
    adapters: dict[str, Path],
    peft_tokens: Callable[..., list[int]],
    greedy: Callable[..., Any],
    reads: list[str],
) -> None:
    engine = make_engine(max_loras=1, max_cpu_loras=2)
    async with serve(engine):
        engine.adapters.load("rank-4", str(adapters["rank-4"]))
        engine.adapters.load("rank-8", str(adapters["rank-8"]))
        await greedy(engine, "rank-4", PROMPT, 2)
        engine.adapters.load("mlp", str(adapters["mlp"]))
        reads.clear()
        for name in ("rank-4", "mlp", "rank-8"):
            assert await greedy(engine, name, PROMPT, 8) == peft_tokens(PROMPT, 8, adapters[name])
    assert reads == ["rank-8"]
    assert [entry.name for entry in engine.adapters.registered()] == ["rank-4", "rank-8", "mlp"]


async def test_a_folder_that_vanished_fails_its_requests_and_nothing_else(
    make_engine: Callable[..., Engine], serve: Callable[[Engine], Any], adapters: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(adapters["rank-4"], tmp_path / "gone")
    engine = make_engine(max_loras=1, max_cpu_loras=1)
    body = {"prompt": PROMPT, "max_tokens": 2}
    async with serve(engine) as http:
        engine.adapters.load("gone", str(folder))
        engine.adapters.load("kept", str(adapters["rank-8"]))
        shutil.rmtree(folder)
        failed = await http.post("/v1/completions", json=body | {"model": "gone"})
        answered = await http.post("/v1/completions", json=body | {"model": "kept"})
        health = await http.get("/health")
    assert failed.status_code == 500
    assert f"cannot be read again from '{folder}'" in failed.json()["error"]["message"]
    assert (answered.status_code, health.status_code) == (200, 200)


async def test_an_unloaded_adapter_frees_its_memory(
    make_engine: Callable[..., Engine], adapters: dict[str, Path], reads: list[str]
) -> None:
    engine = make_engine()
    engine.adapters.load("rank-4", str(adapters["rank-4"]))
    engine.adapters.unload("rank-4")
    engine.adapters.load("rank-4", str(adapters["rank-4"]))
    assert reads == ["rank-4", "rank-4"]
