"""What a GPU does otherwise in a step of training gives what the plain way gives: bounds for a mask, and no casts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, TrainingArguments
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from training.recipes.training_loop import attention
from training.recipes.training_loop.autocast_fix import WithoutCasts


def tiny(**changes: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 64,
        "max_position_embeddings": 128,
    }
    return LlamaForCausalLM(LlamaConfig(**{**config, **changes})).eval()


def one_by_one(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    starts: torch.Tensor,
    *_: Any,
    scale: float,
    window_size: tuple[int, int],
) -> torch.Tensor:
    """The kernel by its documentation: (tokens, heads, size), each sequence alone, causal. It has no form for a CPU."""
    assert window_size == (-1, 0)
    pieces = []
    for first, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        parts = [part[first:end].transpose(0, 1) for part in (query, key, value)]
        answer = nn.functional.scaled_dot_product_attention(*parts, is_causal=True, scale=scale)
        pieces.append(answer.transpose(0, 1))
    return torch.cat(pieces)


@pytest.fixture
def packed() -> dict[str, Any]:
    """Five sequences in two rows, as the trainer's collator gives them."""
    collator = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)
    rows = [[5, 3, 9], [7, 1]]
    chance = torch.Generator().manual_seed(1)
    examples = []
    for lengths in rows:
        ids = torch.randint(1, 64, (sum(lengths),), generator=chance).tolist()
        examples.append({"input_ids": ids, "labels": ids, "seq_lengths": lengths})
    return {**collator(examples), "use_cache": False}


def test_within_bounds_is_as_with_a_mask(monkeypatch: pytest.MonkeyPatch, packed: dict[str, Any]) -> None:
    calls = []
    monkeypatch.setattr(attention, "varlen_attn", lambda *a, **k: calls.append(a) or one_by_one(*a, **k))
    model = tiny()
    with torch.autocast("cpu", torch.bfloat16):
        expected = model(**packed).logits
        attention.attend_within_bounds(model)
        assert torch.allclose(model(**packed).logits, expected, atol=0.01)
    assert len(calls) == 2, "one a layer"
    assert {part.dtype for part in calls[0][:3]} == {torch.bfloat16}
    assert calls[0][3].tolist() == [0, 5, 8, 17, 24, 25]
    assert torch.equal(model(**packed).logits, tiny()(**packed).logits), "the kernel has no float32"


def test_without_bounds_it_is_torchs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(attention, "varlen_attn")
    model, ids = tiny(), torch.arange(1, 13).view(2, 6)
    mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    expected = model(input_ids=ids, attention_mask=mask).logits
    attention.attend_within_bounds(model)
    assert torch.equal(model(input_ids=ids, attention_mask=mask).logits, expected)


def test_another_attention_stays(packed: dict[str, Any]) -> None:
    model = tiny(attn_implementation="eager")
    attention.attend_within_bounds(model)
    assert model.config._attn_implementation == "eager"


def test_autocast_makes_the_casts_needless(packed: dict[str, Any]) -> None:
    model = get_peft_model(tiny().to(torch.bfloat16), LoraConfig(r=4, target_modules=["q_proj", "up_proj"]))
    for name, weight in model.named_parameters():
        if "lora_" in name:
            weight.data = torch.randn_like(weight, dtype=torch.float32)
    casts, args = WithoutCasts(), TrainingArguments(bf16=False, use_cpu=True, report_to="none")
    args.bf16 = True
    with torch.autocast("cpu", torch.bfloat16):
        expected = gradients(model, packed)
        casts.on_step_begin(args, None, None, model=model)
        without = gradients(model, packed)
        casts.on_step_end(args, None, None, model=model)
    assert all(torch.equal(a, b) for a, b in zip(expected, without, strict=True))
    assert torch.isfinite(model(**packed).loss), "without autocast the casts are needed and there"


def gradients(model: Any, batch: dict[str, Any]) -> list[torch.Tensor]:
    model.zero_grad()
    model(**batch).loss.backward()
    return [weight.grad.clone() for weight in model.parameters() if weight.grad is not None]
