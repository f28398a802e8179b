"""Side-by-side training equals PEFT, for every architecture that the recipes take: losses, gradients, and steps."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn import functional

from training.lm.token_sequences import IGNORED, TokenSequence
from training.tars.allocation import patterns
from training.tars.analysis import linear_modules
from training.tars.race.side_by_side import Lane, SideBySide, UnknownArchitecture
from training.tars.signals import Batch, batch_of

SCALE, STEPS = 2.0, 4
CPU = torch.device("cpu")
SMALL = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 2,
}
SHAPES: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 12},
    "gemma3_text": {"head_dim": 12, "sliding_window": 6, "query_pre_attn_scalar": 12},
    "mistral": {"sliding_window": 6},
}


def made(family: str) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    loader: Any = AutoModelForCausalLM
    return loader.from_config(AutoConfig.for_model(family, **SMALL, **SHAPES[family])).float().eval()


def batches() -> list[Batch]:
    """Rows of different lengths, whose first tokens the loss does not count."""
    generator = torch.Generator().manual_seed(5)
    rows = []
    for length in (9, 14, 12, 7, 14, 10, 8, 13):
        ids = torch.randint(3, 97, (length,), generator=generator).tolist()
        rows.append(TokenSequence(ids, [IGNORED] * 3 + ids[3:]))
    return [batch_of(rows, range(2 * place, 2 * place + 2), 0, CPU) for place in range(STEPS)]


def lanes(modules: dict[str, Any]) -> list[Lane]:
    """Ranks of every kind from 0 to 3; one rank everywhere; and the MLP alone from start values of its own."""
    mixed = {name: place % 4 for place, name in enumerate(modules)}
    mlp = {name: 3 for name in modules if "mlp" in name}
    generator = torch.Generator().manual_seed(7)
    start = {name: torch.randn(4, modules[name].in_features, generator=generator) / 9 for name in mlp}
    return [Lane(mixed, 1e-2), Lane(dict.fromkeys(modules, 4), 3e-2), Lane(mlp, 2e-2, start)]


def peer_of(model: Any, side: SideBySide, place: int) -> Any:
    plan = patterns({name: side.lanes[place].ranks.get(name, 0) for name in linear_modules(model)}, SCALE)
    config = LoraConfig(
        r=plan.r,
        lora_alpha=int(plan.lora_alpha),
        rank_pattern=plan.rank_pattern,
        alpha_pattern=plan.alpha_pattern,
        target_modules=plan.target_modules,
    )
    peer: Any = get_peft_model(copy.deepcopy(model), config)
    for name, rank in side.lanes[place].ranks.items():
        if rank:
            peer.get_submodule(f"base_model.model.{name}").lora_A["default"].weight.data = (
                side.a[name][place, :rank].detach().clone()
            )
    return peer


def loss_of(peer: Any, batch: Batch) -> Any:
    logits = peer(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False).logits
    return functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch.labels[:, 1:].flatten(), ignore_index=IGNORED)


def peft_gradients(peer: Any, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    layer = peer.get_submodule(f"base_model.model.{name}")
    return layer.lora_A["default"].weight.grad, layer.lora_B["default"].weight.grad


@pytest.mark.parametrize("family", SHAPES)
def test_losses_gradients_and_steps_are_those_of_peft(family: str) -> None:
    model = made(family)
    modules = linear_modules(model)
    side = SideBySide(model, modules, lanes(modules), SCALE, seed=1)
    peers = [peer_of(model, side, place) for place in range(len(side.lanes))]
    optimisers = [
        torch.optim.AdamW([p for p in peer.parameters() if p.requires_grad], lr=lane.rate, weight_decay=0.0)
        for peer, lane in zip(peers, side.lanes, strict=True)
    ]
    for number, batch in enumerate(batches()):
        wanted = [loss_of(peer, batch) for peer in peers]
        for optimiser, loss in zip(optimisers, wanted, strict=True):
            optimiser.zero_grad()
            loss.backward()
        if number == 1:
            compare_gradients(side, peers, batch)
        for peer, optimiser in zip(peers, optimisers, strict=True):
            torch.nn.utils.clip_grad_norm_([p for p in peer.parameters() if p.requires_grad], 1.0)
            optimiser.step()
        reached = side.step(batch, 1.0)
        assert reached.tolist() == pytest.approx([float(loss.detach()) for loss in wanted], rel=1e-5)
    assert not any(parameter.grad is not None for parameter in model.parameters())


def compare_gradients(side: SideBySide, peers: list[Any], batch: Batch) -> None:
    counted = (batch.labels[:, 1:] != IGNORED).sum(1)
    losses = (side.losses(batch) * counted).sum(1) / counted.sum()
    gradients = torch.autograd.grad(losses.sum(), side.leaves)
    of_a, of_b = (dict(zip(side.a, part, strict=True)) for part in (gradients[: len(side.a)], gradients[len(side.a) :]))
    for place, (peer, lane) in enumerate(zip(peers, side.lanes, strict=True)):
        for name in side.modules:
            rank = lane.ranks.get(name, 0)
            assert not of_a[name][place, rank:].any()
            assert not of_b[name][place, :, rank:].any()
            if rank:
                a, b = peft_gradients(peer, name)
                torch.testing.assert_close(of_a[name][place, :rank], a, rtol=1e-5, atol=1e-6)
                torch.testing.assert_close(of_b[name][place, :, :rank], b, rtol=1e-5, atol=1e-6)


def test_a_module_that_reads_no_whole_sequences_is_named() -> None:
    model = made("llama")
    modules = linear_modules(model)
    side = SideBySide(model, modules, lanes(modules), SCALE, seed=1)
    name = "model.layers.1.mlp.up_proj"
    with side.adapted(6), pytest.raises(UnknownArchitecture, match=name):
        modules[name](torch.zeros(12, 32))
