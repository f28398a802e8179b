"""The signals against autograd and against the definition."""

from __future__ import annotations

import random

import pytest
import torch

from tests.tiny_model import make_model, make_tokenizer, sentences
from training.tars import signals
from training.tars.analysis import linear_modules
from training.tars.data import IGNORED, TokenSequence, tokenised

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def sequences() -> list[TokenSequence]:
    answered = [{"prompt": row["text"], "completion": " a bank shall report"} for row in sentences(4, seed=1)]
    return tokenised([*sentences(5), *answered], make_tokenizer(), 64)


def sums_of(sequences: list[TokenSequence], size: int = 2, *, gradients: bool = True) -> signals.Sums:
    model = make_model()
    stream = signals.batches(sequences, size, 1, CPU)
    *_, last = signals.stream(model, linear_modules(model), stream, gradients=gradients)
    return last


def by_autograd(sequence: TokenSequence) -> dict[str, float]:
    model = make_model()
    ids, labels = torch.tensor([sequence.ids]), torch.tensor([sequence.labels])
    model(input_ids=ids, labels=labels).loss.backward()
    return {name: float(module.weight.grad.double().square().sum()) for name, module in linear_modules(model).items()}


def test_norms_are_autograds_for_every_module_and_sequence(sequences) -> None:
    order = sorted(sequences, key=lambda sequence: len(sequence.ids))
    expected = [by_autograd(sequence) for sequence in order]
    for name, sums in sums_of(sequences).items():
        assert sums.squared_norms == pytest.approx([norms[name] for norms in expected], rel=1e-4)


@pytest.mark.parametrize(("length", "width", "out"), [(3, 40, 50), (60, 8, 9)])
def test_both_ways_to_the_norm_are_exact(length: int, width: int, out: int) -> None:
    inputs, gradients = torch.randn(2, length, width), torch.randn(2, length, out)
    expected = torch.stack([(g.mT @ x).square().sum() for x, g in zip(inputs, gradients, strict=True)])
    torch.testing.assert_close(signals.squared_norms(inputs, gradients), expected.double(), rtol=1e-4, atol=0)


def test_the_frozen_model_and_its_mode_are_given_back(sequences) -> None:
    model = make_model().train()
    frozen = model.model.embed_tokens.weight.requires_grad_(False)
    *_, _last = signals.stream(model, linear_modules(model), signals.batches(sequences, 4, 1, CPU), gradients=True)
    assert model.training
    assert not frozen.requires_grad
    assert model.model.layers[0].self_attn.q_proj.weight.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("size", [1, 3, 9])
def test_batch_size_order_and_padding_change_nothing(sequences, size: int) -> None:
    shuffled = random.Random(3).sample(sequences, len(sequences))
    once, again = sums_of(sequences, 2), sums_of(shuffled, size)
    for name in once:
        assert sum(again[name].squared_norms) == pytest.approx(sum(once[name].squared_norms), rel=1e-4)
        torch.testing.assert_close(again[name].mean_output(), once[name].mean_output(), rtol=1e-4, atol=1e-6)


def test_means_leave_prompts_and_padding_out(sequences) -> None:
    model = make_model()
    name, module = "model.layers.0.mlp.up_proj", model.model.layers[0].mlp.up_proj
    kept = []
    module.register_forward_hook(lambda _m, _i, output: kept.append(output.detach()[0]))
    for sequence in sequences:
        model(input_ids=torch.tensor([sequence.ids]))
    counted = [torch.tensor(sequence.labels) != IGNORED for sequence in sequences]
    expected = torch.cat([outputs[mask] for outputs, mask in zip(kept, counted, strict=True)]).double().mean(0)
    found = sums_of(sequences, gradients=False)[name]
    torch.testing.assert_close(found.mean_output(), expected, rtol=1e-4, atol=1e-6)
    assert found.squared_norms == []


def test_divergence_is_the_definition() -> None:
    base, target = torch.randn(30), torch.randn(30)
    p, q = base.double().softmax(0), target.double().softmax(0)
    assert signals.softmax_divergence(base, target) == pytest.approx(float((p * (p / q).log()).sum()))
    assert signals.softmax_divergence(base, base) == 0.0


def test_hooks_are_gone_after_a_fault(sequences) -> None:
    model = make_model()
    modules = linear_modules(model)
    batch = next(signals.batches(sequences, 2, 1, CPU))
    batch.ids[0, 0] = 10_000
    with pytest.raises(IndexError):
        list(signals.stream(model, modules, iter([batch]), gradients=True))
    assert not any(module._forward_hooks for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
