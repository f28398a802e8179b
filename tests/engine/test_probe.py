"""What the control loop's probe makes of a replica that computes: embedded engines in processes' stead, over HTTP."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from registry.serving import replica_calls
from registry.serving.replica_calls import PROBE, Loaded, LoadRequest, push
from serving_client import EngineClient
from serving_client.engine.api.app import create_app
from serving_client.engine.engine import Engine, Limits
from serving_client.engine.model import open_model
from serving_client.exceptions import BROKEN_WEIGHTS
from tests.fakes.server import Server
from tests.tiny_model import save_base_model


@contextmanager
def replica(base: Path) -> Iterator[str]:
    with Server(create_app(Engine("tiny", open_model(str(base), 512), Limits()))) as server:
        yield server.url


def pushed(url: str, requests: list[LoadRequest]) -> list[Loaded]:
    """Return the results of the loads in the order of the requests."""
    results: dict[str, Loaded] = {}
    push(replica_calls.Engine(url), requests, time.monotonic() + 60, lambda each: results.update({each.name: each}))
    return [results[request.name] for request in requests]


@pytest.fixture
def silent(base_folder: Path, tmp_path: Path) -> Path:
    """A base model whose numbers are all equal: its first choice is token 0, and that is the end."""
    model = LlamaForCausalLM.from_pretrained(base_folder)
    torch.nn.init.zeros_(model.lm_head.weight)
    model.config.eos_token_id = model.generation_config.eos_token_id = 0
    model.save_pretrained(tmp_path / "silent")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "silent" / name).write_bytes((base_folder / name).read_bytes())
    return tmp_path / "silent"


def test_an_adapter_that_says_nothing_is_sound(silent: Path, adapters: dict[str, Path]) -> None:
    load_request = LoadRequest("quiet", str(adapters["rank-4"]), None)
    with replica(silent) as url:
        with EngineClient(url) as engine:
            assert engine.complete("tiny", "a").text == ""
        [result] = pushed(url, [load_request])
    assert (result.refusal, result.problem) == ("", "")


def test_numbers_that_overflow_are_the_adapters_fault_and_the_next_is_loaded(
    base_folder: Path, adapters: dict[str, Path], tmp_path: Path, make_adapter: Callable[..., Path]
) -> None:
    huge = make_adapter(tmp_path / "huge", r=4, lora_alpha=2e38)
    load_requests = [LoadRequest("huge", str(huge), None), LoadRequest("dora", str(adapters["rank-4"]), None)]
    with replica(base_folder) as url, EngineClient(url) as engine:
        results = pushed(url, load_requests)
        assert [model.name for model in engine.models()] == ["tiny", "dora"]
    assert [(one.refusal, one.problem) for one in results] == [(BROKEN_WEIGHTS, ""), ("", "")]


def test_the_probe_fits_into_a_short_context(tmp_path: Path) -> None:
    """128 tokens, of a tokenizer that knows none of its words."""
    with replica(save_base_model(tmp_path)) as url, EngineClient(url) as engine:
        assert engine.is_finite("tiny", PROBE)
