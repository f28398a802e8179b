"""The two signals, streamed: exact gradient norms by sequence, and mean outputs over the tokens that count.

For a module with input X (T, in) and output gradient D (T, out) the weight gradient of a sequence is G = D'X, and
||G||_F^2 = sum(XX' * DD'): never formed where that is dearer, never stored. No activation outlives its backward pass.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.tars.data import IGNORED, TokenSequence, padded

HALVES = 2

Observer = Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]


@dataclass
class Batch:
    """A padded batch; `half` says for each sequence which half of the sample it belongs to."""

    ids: Tensor  # (B, T)
    mask: Tensor  # (B, T)
    labels: Tensor  # (B, T)
    half: Tensor  # (B,)

    @property
    def counted(self) -> Tensor:
        """Tokens that the loss counts, as weights. (B, T)"""
        return (self.labels != IGNORED).float()


@dataclass
class ModuleSums:
    """Running sums of one module; nothing grows with the sample but one number a sequence."""

    squared_norms: list[float] = field(default_factory=list)
    outputs: Tensor | None = None  # (HALVES, out), float64
    tokens: Tensor | None = None  # (HALVES,)

    def add_outputs(self, output: Tensor, batch: Batch) -> None:
        """Add a batch's outputs (B, T, out) over the tokens that count."""
        sums = (batch.counted.unsqueeze(1) @ output.float()).squeeze(1).double()  # (B, out)
        weights = functional.one_hot(batch.half, HALVES).double()  # (B, HALVES)
        added, tokens = weights.T @ sums, weights.T @ batch.counted.double().sum(1)
        self.outputs = added if self.outputs is None else self.outputs + added
        self.tokens = tokens if self.tokens is None else self.tokens + tokens

    def mean_output(self, half: int | None = None) -> Tensor:
        """(out,) over the whole sample, or over one half."""
        if self.outputs is None or self.tokens is None:
            raise ValueError("No outputs were added.")
        if half is None:
            return self.outputs.sum(0) / self.tokens.sum()
        return self.outputs[half] / self.tokens[half].clamp(min=1)


Sums = dict[str, ModuleSums]


def batches(sequences: Sequence[TokenSequence], size: int, pad: int, device: torch.device) -> Iterator[Batch]:
    """Batches of neighbours in length, so that little is padded; the halves are even and odd places in the sample."""
    order = sorted(range(len(sequences)), key=lambda place: (len(sequences[place].ids), place))
    for start in range(0, len(order), size):
        places = order[start : start + size]
        ids, mask, labels = (
            torch.tensor(rows, device=device) for rows in padded([sequences[place] for place in places], pad)
        )
        yield Batch(ids, mask, labels, torch.tensor([place % HALVES for place in places], device=device))


def squared_norms(inputs: Tensor, gradients: Tensor) -> Tensor:
    """||D'X||_F^2 of each sequence, by the cheaper of two exact ways. (B, T, in), (B, T, out) -> (B,)"""
    inputs, gradients = inputs.float(), gradients.float()
    length, width, out = inputs.shape[1], inputs.shape[2], gradients.shape[2]
    if length * (width + out) < width * out:
        return ((inputs @ inputs.mT) * (gradients @ gradients.mT)).sum((1, 2)).double().clamp(min=0)
    return (gradients.mT @ inputs).double().square().sum((1, 2))


def loss_by_sequence(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean loss over the counted tokens of each sequence, in nats. (B, T, V), (B, T) -> (B,)"""
    targets = functional.pad(labels[:, 1:], (0, 1), value=IGNORED)
    losses = functional.cross_entropy(
        logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED, reduction="none"
    ).view_as(targets)
    return losses.sum(1) / (targets != IGNORED).sum(1).clamp(min=1)


@contextlib.contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """No parameter asks for a gradient and dropout is off, until the end; then all is as it was."""
    asked = [parameter for parameter in model.parameters() if parameter.requires_grad]
    training = model.training
    try:
        model.eval().requires_grad_(False)
        yield
    finally:
        model.train(training)
        for parameter in asked:
            parameter.requires_grad_(True)


class Hooks(contextlib.ExitStack):
    """Hooks on the modules and on the embeddings, removed at the end whatever happens. Set `batch` before a forward."""

    def __init__(self, model: nn.Module, modules: dict[str, nn.Linear], *, gradients: bool) -> None:
        super().__init__()
        self.batch: Batch | None = None
        self.sums: Sums = {name: ModuleSums() for name in modules}
        for name, module in modules.items():
            self.callback(module.register_forward_hook(self.observer(name, gradients=gradients)).remove)
        if gradients:
            # A frozen model has no graph: without this the loss would not depend on anything that asks for a gradient.
            embedding = model.get_input_embeddings()  # type: ignore[operator]
            self.callback(embedding.register_forward_hook(lambda _m, _i, output: output.requires_grad_(True)).remove)

    def observer(self, name: str, *, gradients: bool) -> Observer:
        sums = self.sums[name]

        def observe(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if self.batch is None:
                raise RuntimeError("Set Hooks.batch before the forward pass.")
            sums.add_outputs(output.detach(), self.batch)
            if gradients:
                seen = inputs[0].detach()

                def add_norms(gradient: Tensor) -> None:
                    sums.squared_norms.extend(squared_norms(seen, gradient).tolist())

                output.register_hook(add_norms)  # type: ignore[no-untyped-call]

        return observe


def stream(
    model: nn.Module, modules: dict[str, nn.Linear], stream_of_batches: Iterator[Batch], *, gradients: bool
) -> Iterator[Sums]:
    """Yield the running sums after every batch; one forward pass a batch, and a backward pass with `gradients`.

    Norms stand in the order of the batches. The gradient is that of each sequence's own mean loss, so nothing
    depends on batch size, order or padding.
    """
    with frozen(model), Hooks(model, modules, gradients=gradients) as hooks, torch.set_grad_enabled(gradients):
        for batch in stream_of_batches:
            hooks.batch = batch
            logits = model(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False).logits
            if gradients:
                loss_by_sequence(logits, batch.labels).sum().backward()  # type: ignore[no-untyped-call]
            yield hooks.sums


def softmax_divergence(base: Tensor, target: Tensor) -> float:
    """KL(softmax(base) || softmax(target)) over a module's channels, in nats. (out,), (out,)"""
    log_base, log_target = base.double().log_softmax(0), target.double().log_softmax(0)
    return max(0.0, float((log_base.exp() * (log_base - log_target)).sum()))
