"""Each engine's answer, and the one sentence behind it."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from registry.adapter_files.engine_compatibility import Engine, Outcome, Traits, verdict, verdicts

Q, V = "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj"
KEY = "^" + re.escape(Q)
PLAIN = Traits.of({"r": 8, "lora_alpha": 16}, {Q: 8, V: 8}, "b" * 64)
ONE_SCALE = Traits.of(
    {"r": 8, "lora_alpha": 16, "rank_pattern": {KEY: 4}, "alpha_pattern": {KEY: 8}}, {Q: 4, V: 8}, "b" * 64
)
TWO_SCALES = Traits.of({"r": 8, "lora_alpha": 16, "alpha_pattern": {KEY: 8}}, {Q: 8, V: 8}, "b" * 64)
MIXED = Traits.of({"r": 8, "lora_alpha": 16, "rank_pattern": {KEY: 64}}, {Q: 64, V: 8}, "b" * 64)
STABILISED = Traits.of({"r": 16, "lora_alpha": 8, "use_rslora": True}, {Q: 16, V: 16}, "b" * 64)
SERVES, EXPORT, CANNOT = Outcome.SERVES, Outcome.SERVES_AFTER_EXPORT, Outcome.CANNOT


@pytest.mark.parametrize(
    ("traits", "vllm", "old", "sglang", "embedded"),
    [
        (PLAIN, SERVES, SERVES, SERVES, SERVES),
        (ONE_SCALE, SERVES, SERVES, EXPORT, SERVES),
        (TWO_SCALES, SERVES, EXPORT, EXPORT, SERVES),
        (MIXED, SERVES, EXPORT, EXPORT, SERVES),
        (STABILISED, SERVES, SERVES, EXPORT, SERVES),
    ],
)
def test_the_matrix(traits: Traits, vllm: Outcome, old: Outcome, sglang: Outcome, embedded: Outcome) -> None:
    all_verdicts = verdicts(traits, base_digest="b" * 64, max_lora_rank=64)
    assert [one.outcome for one in all_verdicts] == [vllm, old, sglang, embedded, EXPORT]
    assert [one.engine for one in all_verdicts] == list(Engine)
    assert all(one.reason.endswith(".") and "\n" not in one.reason and one.label for one in all_verdicts)


@pytest.mark.parametrize("engine", list(Engine))
@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"base_digest": "c" * 64}, "another base model"),
        ({"dora": True}, "DoRA"),
        ({"bias": "lora_only"}, "bias = lora_only"),
        ({"modules_to_save": ("lm_head",)}, "lm_head"),
    ],
)
def test_what_no_export_helps(engine: Engine, changes: dict[str, Any], named: str) -> None:
    judged = verdict(engine, replace(PLAIN, **changes), base_digest="b" * 64)
    assert judged.outcome == CANNOT
    assert named in judged.reason


@pytest.mark.parametrize("engine", [Engine.VLLM, Engine.VLLM_OLD, Engine.SGLANG, Engine.EMBEDDED])
def test_a_rank_over_the_fleet(engine: Engine) -> None:
    judged = verdict(engine, MIXED, max_lora_rank=32)
    assert (judged.outcome, "64" in judged.reason, "32" in judged.reason) == (CANNOT, True, True)
    assert verdict(engine, MIXED).outcome != CANNOT


def test_llama_cpp_has_no_highest_rank() -> None:
    assert verdict(Engine.LLAMA_CPP, MIXED, max_lora_rank=8).outcome == EXPORT


def test_traits_read_the_configuration() -> None:
    config = {"r": 8, "lora_alpha": 16, "use_dora": True, "bias": "all", "modules_to_save": ["lm_head"]}
    traits = Traits.of(config, {Q: 8}, "")
    assert (traits.dora, traits.bias, traits.modules_to_save, traits.scales) == (True, "all", ("lm_head",), {Q: 2.0})
