"""Rows of several datasets in the proportions of their weights, in an order fixed by the run's seed alone."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

from training.recipes.training_loop.sampling_order import completed, shuffled

# Where a share of a round is a whole number but for rounding errors.
ROUNDING = 1e-9


def shares_of(weights: Sequence[float]) -> list[float]:
    """Return each weight divided by the sum of all."""
    total = sum(weights)
    return [weight / total for weight in weights]


def rows_of_an_epoch(sizes: Sequence[int], shares: Sequence[float]) -> int:
    """Return the number of rows to read, rounded up, until every dataset was read once at its share of the rows.

    Datasets that are small for their share are read several times meanwhile. For one dataset it is its number of rows.
    """
    return math.ceil(max(size / share for size, share in zip(sizes, shares, strict=True)) - ROUNDING)


def rounds(sizes: Sequence[int], shares: Sequence[float], total: int = 0) -> Callable[[random.Random], list[int]]:
    """Return a function that draws the next round: a shuffled list of row indices in which none occurs twice.

    Indices run through the datasets in their order. Each dataset is read in shuffled epochs of its own, each complete
    before the next, and the sums over rounds match the shares to within a row. Rounds are sized so that a run of
    `total` rows has whole ones; 0 means that the length is not known.
    """
    starts = [sum(sizes[:place]) for place in range(len(sizes))]
    most = min(size / share for size, share in zip(sizes, shares, strict=True))
    most = total / math.ceil(total / most - ROUNDING) if total else most
    waiting: list[list[int]] = [[] for _ in sizes]
    number = 0

    def taken(place: int, count: int, chance: random.Random) -> list[int]:
        """Return the next `count` rows of a dataset, which are then used.

        Its next epoch begins when this one has too few.
        """
        if len(waiting[place]) < count:
            over, epoch = waiting[place], [starts[place] + row for row in shuffled(sizes[place], chance)]
            if not over:
                waiting[place] = epoch
            else:
                rows, waiting[place] = completed(over, epoch, count)
                return rows
        rows, waiting[place] = waiting[place][:count], waiting[place][count:]
        return rows

    def draw(chance: random.Random) -> list[int]:
        nonlocal number
        round_of_rows: list[int] = []
        for place, share in enumerate(shares):
            before, after = (math.floor(share * most * each + ROUNDING) for each in (number, number + 1))
            round_of_rows += taken(place, min(after - before, sizes[place]), chance)
        number += 1
        chance.shuffle(round_of_rows)
        return round_of_rows

    return draw
