"""Decoding steps of fixed shape, on a GPU each recorded once as a CUDA graph and then replayed.

A step of few rows launches more than a thousand kernels, and each launch takes Python longer than the GPU needs for
the kernel. A graph launches all of them at once, but its shapes and addresses are those of the recording: so rows,
lengths and slots are padded to powers of two, inputs are copied to one place, and what moves the cache or the slots in
memory makes the recordings void.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from serving_client.engine.batching.step import Result

# Each recording takes some megabytes of a GPU's memory.
MOST_STEPS = 64
SHORTEST = 64
NO_SLOT = -1


class Shape(NamedTuple):
    """The size of a step: rows of the batch, cache positions that they attend to, and adapter slots."""

    rows: int
    length: int
    slots: int

    def padded(self) -> Shape:
        """Round all three up to powers of two, so that few shapes occur.

        The length becomes at least SHORTEST; zero slots stay zero.
        """
        return Shape(power(self.rows), max(power(self.length), SHORTEST), power(self.slots) if self.slots else 0)


class Inputs(NamedTuple):
    """Inputs of a step, with one number for each row: the token, its position, and its adapter's slot or -1.

    `tokens` may be a tensor on the device, as the step before has chosen them; then the host does not wait for them.
    """

    tokens: list[int] | torch.Tensor
    positions: list[int]
    slots: list[int]


class NotRecordable(Exception):
    """The step cannot be recorded: the model reads a value on the host, or no memory is left."""


Forward = Callable[[torch.Tensor, Shape], Result]
"""(3, rows) inputs -> the result of all rows, without a look at a value on the way."""


class FixedStep:
    """A step of one shape, recorded on a GPU as a CUDA graph.

    The first run computes it directly, which also warms libraries up, the second records it, and the second and later
    ones replay the recording. On a CPU every run computes it directly.
    """

    def __init__(self, shape: Shape, forward: Forward, device: torch.device, pool: Any) -> None:
        self._shape, self._forward, self._pool = shape, forward, pool
        self._inputs = torch.zeros(3, shape.rows, dtype=torch.long, device=device)
        self._is_warm = False
        self._graph: torch.cuda.CUDAGraph | None = None
        self._result: Result | None = None

    def run(self, inputs: Inputs) -> Result:
        """Compute the step and return the result of the real rows, without the padding.

        It is valid until the next step of any shape. Raises NotRecordable if the second run cannot be recorded.
        """
        count = len(inputs.positions)
        padding = self._shape.rows - count
        tokens: list[int] = [0] * count if isinstance(inputs.tokens, torch.Tensor) else inputs.tokens
        rows = [
            [*numbers, *[filler] * padding]
            for numbers, filler in zip((tokens, inputs.positions, inputs.slots), (0, 0, NO_SLOT), strict=True)
        ]
        self._inputs.copy_(torch.tensor(rows), non_blocking=True)
        if isinstance(inputs.tokens, torch.Tensor):
            self._inputs[0, :count].copy_(inputs.tokens)
        return self._run().first(count)

    def _run(self) -> Result:
        if not self._is_warm or not self._inputs.is_cuda:
            self._is_warm = True
            return self._forward(self._inputs, self._shape)
        if self._graph is None:
            self._record()
        return self._replayed()

    def _record(self) -> None:
        graph = torch.cuda.CUDAGraph()
        try:
            # Another thread may pin an adapter's weights meanwhile; only this thread's calls must not synchronise.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                self._result = self._forward(self._inputs, self._shape)
        except RuntimeError as error:
            raise NotRecordable(str(error).partition("\n")[0]) from error
        self._graph = graph

    def _replayed(self) -> Result:
        assert self._graph is not None and self._result is not None  # noqa: S101, PT018 - recorded above
        self._graph.replay()
        return self._result


class FixedSteps:
    """Steps by shape, of which the MOST_STEPS most recently used are kept."""

    def __init__(self, forward: Forward, device: torch.device) -> None:
        self._forward, self._device = forward, device
        self._steps: dict[Shape, FixedStep] = {}
        self._places: object = None
        self._pool: Any = None

    def run(self, shape: Shape, inputs: Inputs, places: object) -> Result:
        """Compute a step, padded to the shape, and return the result of the real rows.

        It is valid until the next step of any shape. `places` identifies the addresses of cache and slots: a changed
        value voids all recorded steps. Raises NotRecordable; then nothing has changed but values that the same step
        writes again.
        """
        if places != self._places:
            self._void(places)
        step = self._steps.pop(shape, None) or FixedStep(shape, self._forward, self._device, self._pool)
        self._steps[shape] = step
        if len(self._steps) > MOST_STEPS:
            del self._steps[next(iter(self._steps))]
        return step.run(inputs)

    def _void(self, places: object) -> None:
        if self._steps and self._device.type == "cuda":
            torch.cuda.synchronize(self._device)  # a recording that still runs must not be freed
        self._steps.clear()
        self._places = places
        # One memory pool for the temporaries of all steps, which never run at once. It is freed with the last of them.
        self._pool = torch.cuda.graph_pool_handle() if self._device.type == "cuda" else None


def power(number: int) -> int:
    """Return the smallest power of two that is at least `number`."""
    return 1 << (number - 1).bit_length()
