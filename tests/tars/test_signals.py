"""The streamed signals against autograd and against their definitions."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from tests.tiny_model import make_model, make_tokenizer, sentences
from training.lm.token_sequences import IGNORED, TokenSequence, tokenised
from training.tars import signals
from training.tars.analysis import linear_modules
from training.tars.measures import GradientNorms, GradientSketch, OutputMoments
from training.tars.signals import Watch, Watched

CPU = torch.device("cpu")
FULL_RANK = 16


@pytest.fixture(scope="module")
def sequences() -> list[TokenSequence]:
    answered = [{"prompt": row["text"], "completion": " a bank shall report"} for row in sentences(4, seed=1)]
    return tokenised([*sentences(5), *answered], make_tokenizer(), 64)


def watched(sequences: list[TokenSequence], size: int = 2, model: Any = None, *, gradients: bool = True) -> Watched:
    model = model or make_model()
    modules = linear_modules(model)
    watch = Watched(
        {
            name: Watch(GradientNorms(), GradientSketch.of(module, FULL_RANK, 0), OutputMoments())
            if gradients
            else Watch(moments=OutputMoments())
            for name, module in modules.items()
        }
    )
    for _ in signals.stream(model, modules, watch, signals.batches(sequences, size, 1, CPU)):
        pass
    return watch


def by_autograd(sequence: TokenSequence) -> dict[str, torch.Tensor]:
    model = make_model()
    ids, labels = torch.tensor([sequence.ids]), torch.tensor([sequence.labels])
    model(input_ids=ids, labels=labels).loss.backward()
    return {name: module.weight.grad.double() for name, module in linear_modules(model).items()}


def test_norms_and_spectra_are_autograds(sequences: list[TokenSequence]) -> None:
    order = sorted(sequences, key=lambda sequence: len(sequence.ids))
    gradients = [by_autograd(sequence) for sequence in order]
    for name, watch in watched(sequences).modules.items():
        each = [float(gradient_of[name].square().sum()) for gradient_of in gradients]
        assert watch.norms is not None
        assert watch.norms.values().tolist() == pytest.approx(each, rel=1e-4)
        whole = torch.stack([gradient_of[name] for gradient_of in gradients]).sum(0)
        values, directions = watch.sketch.spectrum(4)
        torch.testing.assert_close(values, torch.linalg.svdvals(whole)[:4], rtol=1e-3, atol=1e-6)
        captured = (whole @ directions.T).norm() / torch.linalg.svdvals(whole)[:4].norm()
        assert float(captured) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("size", [1, 3, 9])
def test_batch_size_order_and_padding_change_nothing(sequences: list[TokenSequence], size: int) -> None:
    shuffled = random.Random(3).sample(sequences, len(sequences))
    once, again = watched(sequences, 2).modules, watched(shuffled, size).modules
    for name in once:
        assert float(again[name].norms.values().sum()) == pytest.approx(
            float(once[name].norms.values().sum()), rel=1e-4
        )
        torch.testing.assert_close(again[name].sketch.y, once[name].sketch.y, rtol=1e-3, atol=1e-4)
        for part, other in zip(again[name].moments.of(), once[name].moments.of(), strict=True):
            torch.testing.assert_close(part, other, rtol=1e-4, atol=1e-6)


def test_moments_leave_prompts_and_padding_out(sequences: list[TokenSequence]) -> None:
    model = make_model()
    collected: list[torch.Tensor] = []
    handle = model.model.layers[0].mlp.up_proj.register_forward_hook(
        lambda _m, _i, out: collected.append(out.detach()[0])
    )
    for sequence in sequences:
        model(input_ids=torch.tensor([sequence.ids]))
    handle.remove()
    counted = [torch.tensor(sequence.labels) != IGNORED for sequence in sequences]
    outputs = torch.cat([outputs[mask] for outputs, mask in zip(collected, counted, strict=True)]).double()
    mean, variance = watched(sequences, gradients=False).modules["model.layers.0.mlp.up_proj"].moments.of()
    torch.testing.assert_close(mean, outputs.mean(0), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(variance, outputs.var(0, unbiased=False), rtol=1e-4, atol=1e-6)


def test_the_frozen_model_and_its_mode_are_given_back(sequences: list[TokenSequence]) -> None:
    model = make_model().train()
    model.model.layers[1].eval()
    frozen = model.model.embed_tokens.weight.requires_grad_(False)
    watched(sequences, 4, model)
    assert [layer.training for layer in model.model.layers] == [True, False]
    assert not frozen.requires_grad
    assert model.model.layers[0].self_attn.q_proj.weight.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())


def test_hooks_are_gone_after_a_fault(sequences: list[TokenSequence]) -> None:
    model = make_model()
    modules = linear_modules(model)
    batch = next(signals.batches(sequences, 2, 1, CPU))
    batch.ids[0, 0] = 10_000
    watch = Watched({name: Watch(norms=GradientNorms()) for name in modules})
    with pytest.raises(IndexError):
        list(signals.stream(model, modules, watch, iter([batch])))
    assert not any(module._forward_hooks for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_loss_that_is_no_number_is_named(sequences: list[TokenSequence]) -> None:
    model = make_model()
    model.model.norm.weight.data.fill_(float("nan"))
    with pytest.raises(signals.LossNotFinite, match="not finite"):
        watched(sequences, 2, model)


def test_what_a_pass_keeps_does_not_grow_with_the_sample(sequences: list[TokenSequence]) -> None:
    """Eight times the sample: the same sums, and one number more a sequence."""
    few, many = watched(sequences[:1]), watched(sequences[:1] * 8)

    def numbers(watch: Watched) -> int:
        sizes = [
            (w.sketch.y, w.sketch.z, w.moments.sums, w.moments.squares, w.moments.tokens)
            for w in watch.modules.values()
        ]
        return sum(part.numel() for parts in sizes for part in parts)

    assert numbers(few) == numbers(many)
    assert {len(watch.norms.values()) for watch in many.modules.values()} == {8}
