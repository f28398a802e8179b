"""Which sequence is read when, fixed by the seed alone, so that a resumed run reads on exactly where it stopped."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

WINDOW_BATCHES = 16


def reading_order(lengths: Sequence[int], count: int, batch_size: int, seed: int) -> list[int]:
    """`count` places in `lengths`: whole shuffled epochs, with neighbours in length in a batch so that less is padded.

    Batches are shuffled again, so that length says nothing about the step.
    """
    chance = random.Random(seed)  # noqa: S311 - an order, no secret
    places = shuffled_epochs(len(lengths), count, chance)
    ordered: list[int] = []
    for start in range(0, count, WINDOW_BATCHES * batch_size):
        window = sorted(places[start : start + WINDOW_BATCHES * batch_size], key=lambda place: lengths[place])
        batches = [window[at : at + batch_size] for at in range(0, len(window), batch_size)]
        chance.shuffle(batches)
        ordered += [place for batch in batches for place in batch]
    return ordered


def shuffled_epochs(size: int, count: int, chance: random.Random) -> list[int]:
    return [place for _, place in zip(range(count), endless(size, chance), strict=False)]


def endless(size: int, chance: random.Random) -> Iterator[int]:
    while True:
        epoch = list(range(size))
        chance.shuffle(epoch)
        yield from epoch
