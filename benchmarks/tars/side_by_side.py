"""Runs of any domains and arms, N at a time on one Stack, each to its held-out losses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tars.adalora import AdaTraining
from tars.arms import Arm, Loop, Ranks, Training
from tars.corpus import Corpus
from tars.llama import Stack
from torch import Tensor

# Arms in one batch, and the rank that all are padded to: one compiled shape for every run.
ARMS = 8
WIDTH = 32
BATCH = 16


@dataclass
class Run:
    """One arm on one domain; `key` names it in the results."""

    key: dict[str, Any]
    domain: str
    arm: Arm


@dataclass
class Done:
    """The held-out loss of each block (S,), the trained factors by module name, and the ranks at the end."""

    run: Run
    losses: Tensor
    factors: dict[str, tuple[Tensor, Tensor]]
    ranks: Ranks


def together(
    stack: Stack,
    corpora: dict[str, Corpus],
    runs: Sequence[Run],
    loop: Loop,
    steps: int | None = None,
    at_once: int = ARMS,
    batch: int = BATCH,
) -> list[Done]:
    """Train at most `at_once` runs of one method side by side, all the loop's steps or the first `steps`.

    Fewer are filled up with copies, so that the shape stays the same.
    """
    filled = [runs[index % len(runs)] for index in range(at_once)]
    training = training_of(stack, [run.arm for run in filled], loop)
    training.run(batches(corpora, filled, batch), loop.steps if steps is None else steps)
    losses = training.evaluate(torch.stack([corpora[run.domain].held_out for run in filled]), batch).cpu()
    return [
        Done(run, losses[index], {name: (a, b) for name, a, b in training.factors(index)}, training.ranks(index))
        for index, run in enumerate(runs)
    ]


def training_of(stack: Stack, arms: Sequence[Arm], loop: Loop) -> Training:
    if arms[0].method != "adalora":
        return Training(stack, arms, WIDTH, loop)
    # The usual setting: half as many ranks again at the start.
    return AdaTraining(stack, arms, WIDTH, loop, target=2 * sum(arms[0].ranks.values()) // 3)


def batches(corpora: dict[str, Corpus], runs: Sequence[Run], size: int = BATCH) -> Iterator[Tensor]:
    streams = [corpora[run.domain].batches(run.arm.seed, size) for run in runs]
    while True:
        yield torch.stack([next(stream) for stream in streams])
