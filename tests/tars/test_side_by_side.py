"""The harness of the rank benchmark: many runs on one base are each what PEFT alone would have trained."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from tars.arms import Arm, Loop, Training, starting
from tars.llama import KINDS, Base, Stack, module_name

from training.tars.allocation import patterns

LENGTH, STEPS, SCALE, WIDTH = 12, 5, 2.0, 8
NAMES = [module_name(layer, kind) for layer in range(2) for kind in KINDS]


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=97,
            hidden_size=48,
            intermediate_size=80,
            num_hidden_layers=2,
            num_attention_heads=6,
            num_key_value_heads=2,
            tie_word_embeddings=True,
        )
    ).eval()


def batches() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(0, 97, (2, 3, LENGTH + 1), generator=generator) for _ in range(STEPS)]


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_arms_of_different_ranks_and_rates_train_as_peft_does(model: Any, method: str) -> None:
    loop, stack = Loop(steps=STEPS, warmup=2), Stack(Base.of(model), SCALE, LENGTH, compiled=False)
    mixed = {name: place % 4 for place, name in enumerate(NAMES)}
    arms = [Arm(mixed, 1e-2, 1, method=method), Arm(dict.fromkeys(NAMES, 4), 2e-2, 2, method=method)]
    losses = torch.stack(Training(stack, arms, WIDTH, loop).run(iter(batches()), STEPS))
    for place, arm in enumerate(arms):
        assert losses[:, place].tolist() == pytest.approx(alone(model, arm, stack, loop, place), rel=1e-4)


def alone(model: Any, arm: Arm, stack: Stack, loop: Loop, place: int) -> list[float]:
    plan = patterns(arm.ranks, SCALE)
    config = LoraConfig(
        r=plan.r,
        lora_alpha=int(plan.lora_alpha),
        rank_pattern=plan.rank_pattern,
        alpha_pattern=plan.alpha_pattern,
        target_modules=plan.target_modules,
        use_dora=arm.method == "dora",
    )
    peer = get_peft_model(copy.deepcopy(model), config)
    first, _ = starting(arm, stack, WIDTH)
    for layer in range(2):
        for kind in KINDS:
            name = module_name(layer, kind)
            if rank := arm.ranks[name]:
                peer.get_submodule(f"base_model.model.{name}").lora_A["default"].weight.data = first[kind][
                    layer, :rank
                ].clone()
    parameters = [parameter for parameter in peer.parameters() if parameter.requires_grad]
    optimiser, losses = torch.optim.AdamW(parameters, lr=1.0, weight_decay=0.0), []
    for step, ids in enumerate(batches()):
        optimiser.param_groups[0]["lr"] = arm.rate * loop.rate(step)
        logits = peer(ids[place][:, :-1], use_cache=False).logits
        loss = functional.cross_entropy(logits.flatten(0, 1), ids[place][:, 1:].flatten())
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        losses.append(float(loss.detach()))
    return losses
