"""Result of a forward pass: the next token of each row, read while the GPU goes on."""

from __future__ import annotations

from typing import NamedTuple

import torch

from serving_client.engine.batching.sequence import Sequence


class Result(NamedTuple):
    """Logits of each row, its most likely token, and whether its logits are finite; all on the model's device."""

    logits: torch.Tensor  # (rows, vocabulary) float32
    tokens: torch.Tensor  # (rows,) most likely token of each
    is_finite: torch.Tensor  # (rows,) False where a logit is NaN or infinite

    @classmethod
    def of(cls, logits: torch.Tensor) -> Result:
        """Compute the result for logits (rows, vocabulary): most likely tokens, and whether the logits are finite."""
        smallest, largest = logits.aminmax(dim=-1)
        return cls(logits, logits.argmax(dim=-1), smallest.isfinite() & largest.isfinite())

    def first(self, rows: int) -> Result:
        """Return the result of the first `rows` rows alone."""
        return Result(*(part[:rows] for part in self))


class PendingStep:
    """A forward pass that is queued, with the rows that it computes. `read` waits for it."""

    def __init__(self, rows: list[Sequence], result: Result) -> None:
        self.rows = list(rows)
        self.logits = result.logits
        self.tokens = result.tokens
        self._done: torch.cuda.Event | None = None
        self._values = torch.stack((result.tokens, result.is_finite.long()))
        if self._values.is_cuda:
            # To pageable memory the copy would wait, and the next step could not be queued meanwhile.
            host = torch.empty(self._values.shape, dtype=torch.long, pin_memory=True)
            self._values = host.copy_(self._values, non_blocking=True)
            self._done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._done.record()

    def read(self) -> tuple[list[int], list[bool]]:
        """Wait for the pass; return the most likely token of each row, and whether its logits are finite."""
        if self._done:
            self._done.synchronize()
        tokens, finite = self._values.tolist()
        return tokens, [bool(flag) for flag in finite]
