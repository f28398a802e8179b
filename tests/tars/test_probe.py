"""The probe: real LoRA steps, as PEFT would take them, that leave the base model as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from tests.tiny_model import make_model, make_tokenizer, sentences
from training.lm.token_sequences import tokenised
from training.tars.analysis import linear_modules
from training.tars.probe import WARMUP, Factors, Probe, adapted, probe
from training.tars.signals import LossNotFinite, batch_of, loss_by_sequence

CPU = torch.device("cpu")


def batches(count: int = 2) -> list[Any]:
    sequences = tokenised(sentences(4 * count), make_tokenizer(), 32)
    return [batch_of(sequences, range(4 * place, 4 * place + 4), 1, CPU) for place in range(count)]


def settings(**changes: Any) -> dict[str, Any]:
    return {"steps": 6, "rank": 4, "rate": 1e-2, "scale": 2.0, "seed": 0, **changes}


def test_losses_and_spectra_are_those_of_peft() -> None:
    model, peft_model = make_model(), make_model()
    modules = linear_modules(model)
    probed = probe(model, modules, batches(), **settings())
    targets = sorted({name.rsplit(".", 1)[-1] for name in modules})
    peer = get_peft_model(peft_model, LoraConfig(r=4, lora_alpha=8, target_modules=targets))
    start(peer, modules)
    losses = trained(peer)
    assert probed.losses == pytest.approx(losses, rel=1e-4)
    for name in modules:
        layer = peer.get_submodule(f"base_model.model.{name}")
        update = layer.lora_B["default"].weight.double() @ layer.lora_A["default"].weight.double()
        assert probed.spectra[name] == pytest.approx(torch.linalg.svdvals(update)[:4].tolist(), rel=1e-2, abs=1e-5)


def start(peer: Any, modules: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(0)
    for name, module in modules.items():
        layer = peer.get_submodule(f"base_model.model.{name}")
        layer.lora_A["default"].weight.data.copy_(Factors.of(module, 4, generator, CPU).a.detach())


def trained(peer: Any) -> list[float]:
    parameters = [parameter for parameter in peer.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=1.0, weight_decay=0.0)
    data, losses = batches(), []
    for step in range(6):
        optimiser.param_groups[0]["lr"] = 1e-2 * min(1.0, (step + 1) / WARMUP)
        batch = data[step % 2]
        logits = peer(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False).logits
        loss = loss_by_sequence(logits, batch.labels).mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        losses.append(float(loss.detach()))
    return losses


def test_the_base_model_is_left_as_it_was() -> None:
    model = make_model().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    probe(model, linear_modules(model), batches(), **settings())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    assert model.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_the_same_seed_gives_the_same_probe_and_a_fault_removes_the_hooks() -> None:
    model = make_model()
    modules = linear_modules(model)
    assert probe(model, modules, batches(), **settings()) == probe(model, modules, batches(), **settings())
    factors = {name: Factors.of(module, 4, torch.Generator(), CPU) for name, module in modules.items()}
    with pytest.raises(RuntimeError, match="fault"), adapted(modules, factors, 2.0):
        raise RuntimeError("fault")
    assert not any(module._forward_hooks for module in model.modules())


def test_a_broken_model_is_named_and_a_rate_too_high_only_loses() -> None:
    model = make_model()
    assert Probe(0.5, [1.0, float("nan")], {}).reached == float("inf")
    model.model.norm.weight.data.fill_(float("nan"))
    with pytest.raises(LossNotFinite):
        probe(model, linear_modules(model), batches(), **settings())
