"""Requests of many adapters share every forward and still answer as if each were alone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from serving_client.engine.adapters import lora
from serving_client.engine.batching import batch
from serving_client.engine.completion_request import parse_completion
from serving_client.engine.engine import Engine

PROMPTS = [list(b"The bank shall report"), list(b"A"), list(b"Dear client, your account is"), list(b"1 2 3 4 5 6")]
COUNT = 20


def load_all(engine: Engine, adapters: dict[str, Path]) -> None:
    for name, folder in adapters.items():
        engine.adapters.load(name, str(folder))


def count_forwards(engine: Engine) -> list[int]:
    """Grows by the number of tokens a row of each forward of the base model."""
    forwards: list[int] = []
    engine.base.model.register_forward_pre_hook(
        lambda _, __, fields: forwards.append(fields["input_ids"].shape[1]), with_kwargs=True
    )
    return forwards


@pytest.fixture(
    params=["by group", *(pytest.param(way, marks=pytest.mark.slow) for way in ("from all slots", "in fixed shapes"))]
)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ways of a CPU and those of a GPU, but for the recording."""
    monkeypatch.setattr(lora, "waits_for_launches", lambda _: request.param != "by group")
    monkeypatch.setattr(batch, "runs_in_fixed_shapes", lambda *_: request.param == "in fixed shapes")


@pytest.mark.usefixtures("way")
async def test_a_mixed_batch_answers_as_peft_does_alone(
    make_engine: Callable[..., Engine],
    serve: Callable[[Engine], Any],
    adapters: dict[str, Path],
    peft_tokens: Callable[..., list[int]],
    greedy: Callable[..., Any],
) -> None:
    engine = make_engine()
    load_all(engine, adapters)
    requests = [(name, prompt) for prompt in PROMPTS[:2] for name in ("tiny", *adapters)]
    async with serve(engine):
        together = await asyncio.gather(*(greedy(engine, name, prompt, COUNT) for name, prompt in requests))
        alone = [await greedy(engine, name, prompt, COUNT) for name, prompt in requests]
    expected = [peft_tokens(prompt, COUNT, adapters.get(name)) for name, prompt in requests]
    assert together == alone == expected
    assert len({tuple(tokens) for tokens in expected}) == len(requests), "the adapters must differ to prove anything"


@pytest.mark.parametrize("name", ["patterns", "stabilised"])
async def test_ranks_and_scales_are_those_of_a_merge(
    name: str,
    make_engine: Callable[..., Engine],
    serve: Callable[[Engine], Any],
    adapters: dict[str, Path],
    peft_tokens: Callable[..., list[int]],
    greedy: Callable[..., Any],
) -> None:
    engine = make_engine()
    load_all(engine, {name: adapters[name]})
    async with serve(engine):
        tokens = await greedy(engine, name, PROMPTS[0], COUNT)
    assert tokens == peft_tokens(PROMPTS[0], COUNT, adapters[name], merged=True)


@pytest.mark.usefixtures("way")
async def test_sixteen_requests_over_eight_adapters_take_one_forward_a_step(
    make_engine: Callable[..., Engine],
    serve: Callable[[Engine], Any],
    adapters: dict[str, Path],
    greedy: Callable[..., Any],
) -> None:
    engine = make_engine()
    load_all(engine, adapters)
    forwards = count_forwards(engine)
    answering = asyncio.gather(*(greedy(engine, name, PROMPTS[2], COUNT) for name in (*adapters, *adapters)))
    async with asyncio.timeout(20):  # all wait in the queue before the engine's thread begins
        while len(engine.loop.load().waiting) < 16:
            await asyncio.sleep(0)
    async with serve(engine):
        answers = await answering
    assert [len(answer) for answer in answers] == [COUNT] * 16
    assert forwards == [len(PROMPTS[2])] + [1] * (COUNT - 1)


@pytest.mark.usefixtures("way")
async def test_requests_that_join_and_leave_change_no_other_answer(
    make_engine: Callable[..., Engine],
    serve: Callable[[Engine], Any],
    adapters: dict[str, Path],
    peft_tokens: Callable[..., list[int]],
    greedy: Callable[..., Any],
) -> None:
    engine = make_engine()
    load_all(engine, adapters)
    body = {"model": "rank-16", "prompt": PROMPTS[0], "max_tokens": 60, "temperature": 0, "ignore_eos": True}
    async with serve(engine):
        first = (await engine.begin(parse_completion(body))).deltas()
        tokens = [*(await anext(first)).token_ids]
        joining = [greedy(engine, name, PROMPTS[i % 4], 3 + i) for i, name in enumerate(("tiny", *adapters))]
        later = asyncio.gather(*joining)
        tokens += [token async for delta in first for token in delta.token_ids]
        others = await later
    assert tokens == peft_tokens(PROMPTS[0], 60, adapters["rank-16"])
    for i, name in enumerate(("tiny", *adapters)):
        assert others[i] == peft_tokens(PROMPTS[i % 4], 3 + i, adapters.get(name)), name


@pytest.mark.usefixtures("way")
async def test_more_adapters_than_slots_wait_for_their_turn(
    make_engine: Callable[..., Engine],
    serve: Callable[[Engine], Any],
    adapters: dict[str, Path],
    peft_tokens: Callable[..., list[int]],
    greedy: Callable[..., Any],
) -> None:
    engine = make_engine(max_loras=2, max_batch=3)
    load_all(engine, adapters)
    async with serve(engine):
        answers = await asyncio.gather(*(greedy(engine, name, PROMPTS[1], 8) for name in adapters))
    assert answers == [peft_tokens(PROMPTS[1], 8, folder) for folder in adapters.values()]


@pytest.mark.usefixtures("way")
async def test_unloading_lets_a_running_answer_end_with_its_weights(
    make_engine: Callable[..., Engine],
    serve: Callable[[Engine], Any],
    adapters: dict[str, Path],
    peft_tokens: Callable[..., list[int]],
    greedy: Callable[..., Any],
) -> None:
    engine = make_engine()
    engine.adapters.load("dora", str(adapters["rank-4"]))
    body = {"model": "dora", "prompt": PROMPTS[0], "max_tokens": 200, "temperature": 0, "ignore_eos": True}
    async with serve(engine):
        old = (await engine.begin(parse_completion(body))).deltas()
        tokens = [*(await anext(old)).token_ids]
        engine.adapters.unload("dora")
        engine.adapters.load("dora", str(adapters["rank-16"]))
        new = await greedy(engine, "dora", PROMPTS[0], COUNT)
        tokens += [token async for delta in old for token in delta.token_ids]
    assert tokens == peft_tokens(PROMPTS[0], 200, adapters["rank-4"])
    assert new == peft_tokens(PROMPTS[0], COUNT, adapters["rank-16"])


@pytest.mark.usefixtures("way")
async def test_a_request_that_nobody_waits_for_leaves_the_batch(
    make_engine: Callable[..., Engine], serve: Callable[[Engine], Any], greedy: Callable[..., Any]
) -> None:
    engine = make_engine(max_batch=1)
    body = {"prompt": PROMPTS[0], "max_tokens": 400, "temperature": 0, "ignore_eos": True}
    async with serve(engine):
        abandoned = await engine.begin(parse_completion(body))
        await anext(abandoned.deltas())
        abandoned.cancel()
        await greedy(engine, "tiny", PROMPTS[1], 2)
        assert len(abandoned.sequences[0].tokens) < 400


@pytest.mark.parametrize(
    ("package", "compiler", "lacks"), [(None, "/usr/bin/gcc", "Triton"), (1, None, "a C compiler")]
)
def test_a_gpu_without_what_its_kernels_need_says_so(
    package: Any, compiler: str | None, lacks: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(lora, "find_spec", lambda _: package)
    monkeypatch.setattr(lora, "which", lambda _: compiler)
    assert lora.row_kernel(torch.device("cuda")) is None
    assert f"Without {lacks} " in caplog.text
    caplog.clear()
    assert lora.row_kernel(torch.device("cpu")) is None
    assert caplog.text == ""
