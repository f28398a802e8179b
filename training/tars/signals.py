"""A pass over sequences in which hooks feed each module's measures, and nothing else is stored.

No activation outlives its backward pass and no gradient of a weight is formed, so frozen, bfloat16 and 4-bit bases work
alike.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.lm.token_sequences import IGNORED, TokenSequence, padded
from training.tars import distributed
from training.tars.measures import HALVES, GradientNorms, GradientSketch, OutputMoments

Observer = Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]


class LossNotFinite(ValueError):
    """Raised if the model's loss on the sample is NaN or infinite."""

    def __init__(self) -> None:
        super().__init__("The loss is not finite: the base model or its dtype is broken, or a row has no real text.")


@dataclass
class Batch:
    """A padded batch of token `ids`, its attention `mask` and `labels`.

    `half` is each sequence's half of the sample, 0 or 1.
    """

    ids: Tensor  # (B, T)
    mask: Tensor  # (B, T)
    labels: Tensor  # (B, T)
    half: Tensor  # (B,)

    @property
    def counted(self) -> Tensor:
        """Return 1.0 for each token whose label counts in the loss, else 0.0; (B, T)."""
        return (self.labels != IGNORED).float()


@dataclass
class Watch:
    """Measurements that a pass takes of one module; None for those that it does not take."""

    norms: GradientNorms | None = None
    sketch: GradientSketch | None = None
    moments: OutputMoments | None = None

    @property
    def gradients(self) -> bool:
        """Return True if a measurement needs the module's gradients."""
        return self.norms is not None or self.sketch is not None


@dataclass
class Watched:
    """The measurements of every module by full name, and the halves of the sequences in reading order."""

    modules: dict[str, Watch]
    halves: list[int] = field(default_factory=list)

    @property
    def gradients(self) -> bool:
        """Return True if a measurement of some module needs gradients."""
        return any(watch.gradients for watch in self.modules.values())

    def merge(self) -> None:
        """Replace the measurements by those of all processes together, with sequences in the order of the processes.

        A collective call: every process must make it.
        """
        self.halves = [half for part in distributed.gathered(self.halves) for half in part]
        norms = {name: watch.norms.values() for name, watch in self.modules.items() if watch.norms}
        parts = distributed.gathered(norms)
        for name, watch in self.modules.items():
            if watch.norms:
                watch.norms.squares = [part[name] for part in parts]
            for measure in (watch.sketch, watch.moments):
                if measure:
                    measure.merge()


def batches(sequences: Sequence[TokenSequence], size: int, pad: int, device: torch.device) -> Iterator[Batch]:
    """Yield the sequences in batches, shortest first, to reduce padding; even and odd indices are the two halves."""
    order = sorted(range(len(sequences)), key=lambda place: (len(sequences[place].ids), place))
    for start in range(0, len(order), size):
        yield batch_of(sequences, order[start : start + size], pad, device)


def batch_of(sequences: Sequence[TokenSequence], places: Sequence[int], pad: int, device: torch.device) -> Batch:
    """Return the sequences at these places as one padded batch on the device, with the half of each."""
    rows = padded([sequences[place] for place in places], pad)
    ids, mask, labels = (torch.tensor(part, device=device) for part in rows)
    return Batch(ids, mask, labels, torch.tensor([place % HALVES for place in places], device=device))


def loss_by_sequence(logits: Tensor, labels: Tensor) -> Tensor:
    """Return each sequence's mean loss over its counted tokens, in nats: (B, T, V), (B, T) -> (B,).

    0 if it has none.
    """
    targets = functional.pad(labels[:, 1:], (0, 1), value=IGNORED)
    losses = functional.cross_entropy(
        logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED, reduction="none"
    ).view_as(targets)
    return losses.sum(1) / (targets != IGNORED).sum(1).clamp(min=1)


@contextlib.contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Switch off all parameters' gradients, and dropout, inside the block; restore both afterwards."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    training = [module for module in model.modules() if module.training]
    try:
        model.eval().requires_grad_(False)
        yield
    finally:
        for module in training:
            module.training = True
        for parameter in trainable:
            parameter.requires_grad_(True)


class Hooks(contextlib.ExitStack):
    """Context manager of the hooks that measure; they are removed at its end. Set `batch` before each forward pass.

    If gradients are measured, the embedding's output is made to require them.
    """

    def __init__(self, model: nn.Module, modules: dict[str, nn.Module], watched: Watched) -> None:
        super().__init__()
        self.batch: Batch | None = None
        for name, watch in watched.modules.items():
            self.callback(modules[name].register_forward_hook(self.observer(watch)).remove)
        if watched.gradients:
            # A frozen model has no graph: without this no input of the loss would require a gradient.
            embedding = model.get_input_embeddings()  # type: ignore[operator]
            self.callback(embedding.register_forward_hook(lambda _m, _i, output: output.requires_grad_(True)).remove)

    def observer(self, watch: Watch) -> Observer:
        """Return a forward hook that adds a module's outputs and, if needed, gradients to the watch.

        The hook raises RuntimeError if `batch` was not set.
        """

        def observe(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if self.batch is None:
                raise RuntimeError("Set Hooks.batch before the forward pass.")
            if watch.moments is not None:
                watch.moments.add(output.detach(), self.batch.counted, self.batch.half)
            if watch.gradients:
                module_input = inputs[0].detach()
                output.register_hook(lambda gradient: add_gradient(watch, module_input, gradient))  # type: ignore[no-untyped-call]

        return observe


def add_gradient(watch: Watch, inputs: Tensor, gradient: Tensor) -> None:
    """Add a batch's gradient to those of the watch's measurements that take gradients."""
    for measure in (watch.norms, watch.sketch):
        if measure is not None:
            measure.add(inputs, gradient)


def stream(
    model: nn.Module, modules: dict[str, nn.Module], watched: Watched, source: Iterator[Batch]
) -> Iterator[None]:
    """Measure batch by batch into `watched`, yielding after each batch.

    A batch takes a forward pass and, if gradients are needed, a backward pass. The gradient is that of each sequence's
    own mean loss, so nothing depends on batch size, order or padding. Raises LossNotFinite, only where gradients are
    measured.
    """
    with frozen(model), Hooks(model, modules, watched) as hooks, torch.set_grad_enabled(watched.gradients):
        for batch in source:
            hooks.batch = batch
            watched.halves += batch.half.tolist()
            logits = model(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False).logits
            if watched.gradients:
                loss = loss_by_sequence(logits, batch.labels).sum()
                if not torch.isfinite(loss):
                    raise LossNotFinite
                loss.backward()  # type: ignore[no-untyped-call]
            yield
