"""Reading order of the sequences, fixed by the seed alone, so that a resumed run continues where it stopped."""

from __future__ import annotations

import bisect
import random
from collections.abc import Iterator, Sequence

WINDOW_BATCHES = 16
PACK_WINDOW = 64


def reading_order(lengths: Sequence[int], count: int, batch_size: int, seed: int) -> list[int]:
    """Return `count` indices into `lengths`: shuffled epochs, with similar lengths in a batch to reduce padding.

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
    """Return `count` places of epochs that are each shuffled."""
    return [place for _, place in zip(range(count), endless(size, chance), strict=False)]


def endless(size: int, chance: random.Random) -> Iterator[int]:
    """Yield the places of one shuffled epoch after the other."""
    while True:
        epoch = list(range(size))
        chance.shuffle(epoch)
        yield from epoch


def packed(lengths: Sequence[int], count: int, room: int, seed: int) -> list[list[int]]:
    """Return `count` groups of indices of at most `room` tokens: shuffled epochs, best fit decreasing in windows."""
    source = endless(len(lengths), random.Random(seed))  # noqa: S311 - an order, no secret
    groups: list[list[int]] = []
    while len(groups) < count:
        window: list[int] = []
        tokens = 0
        while tokens < room * PACK_WINDOW and len(window) < len(lengths):
            window.append(next(source))
            tokens += lengths[window[-1]]
        groups += best_fit(window, lengths, room, random.Random(seed + len(groups)))  # noqa: S311
    return groups[:count]


def best_fit(places: Sequence[int], lengths: Sequence[int], room: int, chance: random.Random) -> list[list[int]]:
    """Put each sequence, longest first, where the least room is left over; return the groups in shuffled order."""
    groups: list[list[int]] = []
    free: list[tuple[int, int]] = []
    for place in sorted(places, key=lambda place: -lengths[place]):
        at = bisect.bisect_left(free, (lengths[place], -1))
        free_tokens, group = free.pop(at) if at < len(free) else (room, len(groups))
        if group == len(groups):
            groups.append([])
        groups[group].append(place)
        bisect.insort(free, (free_tokens - lengths[place], group))
    chance.shuffle(groups)
    return groups
