"""Reading order of the sequences, fixed by the seed alone, so that a resumed run continues where it stopped."""

from __future__ import annotations

import bisect
import random
from collections.abc import Callable, Sequence
from functools import partial

# What gives the next rows to read: an epoch, or a round of a mixture; no row twice.
Draw = Callable[[random.Random], list[int]]

WINDOW_BATCHES = 16
PACK_WINDOW = 64


def reading_order(
    lengths: Sequence[int], count: int, batch_size: int, seed: int, draw: Draw | None = None
) -> list[int]:
    """Return `count` indices into `lengths`: shuffled epochs, with similar lengths in a batch to reduce padding.

    An epoch is complete before the next begins, and no batch holds a row twice unless there are fewer rows than that.
    Batches are shuffled again, so that length says nothing about the step. `draw` gives other rounds than epochs.
    """
    chance = random.Random(seed)  # noqa: S311 - an order, no secret
    draw = draw or partial(shuffled, len(lengths))
    ordered: list[int] = []
    over: list[int] = []
    while len(ordered) < count:
        epoch = draw(chance)
        over, epoch = completed(over, epoch, batch_size)
        if len(over) < batch_size and over:
            continue
        ordered += over
        whole = len(epoch) - len(epoch) % batch_size
        ordered += by_length(epoch[:whole], lengths, batch_size, chance)
        over = epoch[whole:]
    return ordered[:count]


def shuffled(size: int, chance: random.Random) -> list[int]:
    """Return the places of an epoch in random order."""
    epoch = list(range(size))
    chance.shuffle(epoch)
    return epoch


def completed(over: list[int], epoch: list[int], batch_size: int) -> tuple[list[int], list[int]]:
    """Fill what is over from an epoch to a batch from the next one; return the batch and the rest of the next.

    Rows that the batch has already are taken last.
    """
    if not over:
        return [], epoch
    leftover = set(over)
    order = [place for place in epoch if place not in leftover] + [place for place in epoch if place in leftover]
    taken = order[: batch_size - len(over)]
    rest = set(taken)
    return over + taken, [place for place in epoch if place not in rest]


def by_length(places: list[int], lengths: Sequence[int], batch_size: int, chance: random.Random) -> list[int]:
    """Return the places with similar lengths in a batch, and the batches in random order."""
    ordered: list[int] = []
    for start in range(0, len(places), WINDOW_BATCHES * batch_size):
        window = sorted(places[start : start + WINDOW_BATCHES * batch_size], key=lambda place: lengths[place])
        batches = [window[at : at + batch_size] for at in range(0, len(window), batch_size)]
        chance.shuffle(batches)
        ordered += [place for batch in batches for place in batch]
    return ordered


def packed(lengths: Sequence[int], count: int, room: int, seed: int, draw: Draw | None = None) -> list[list[int]]:
    """Return `count` groups of indices of at most `room` tokens: shuffled epochs, best fit decreasing in windows.

    An epoch is complete before the next begins, so no group holds a row twice. `draw` gives other rounds than epochs.
    """
    chance = random.Random(seed)  # noqa: S311 - an order, no secret
    draw = draw or partial(shuffled, len(lengths))
    groups: list[list[int]] = []
    while len(groups) < count:
        groups += packed_epoch(draw(chance), lengths, room, seed + len(groups))
    return groups[:count]


def packed_rows(lengths: Sequence[int], rows: int, room: int, seed: int, draw: Draw | None = None) -> int:
    """Return the number of groups that the epochs make in which so many rows are read."""
    chance = random.Random(seed)  # noqa: S311 - an order, no secret
    draw = draw or partial(shuffled, len(lengths))
    groups: list[list[int]] = []
    while rows > 0:
        epoch = draw(chance)
        rows -= len(epoch)
        groups += packed_epoch(epoch, lengths, room, seed + len(groups))
    return len(groups)


def packed_epoch(epoch: list[int], lengths: Sequence[int], room: int, seed: int) -> list[list[int]]:
    """Return the groups of one shuffled epoch, which is used up."""
    groups: list[list[int]] = []
    while epoch:
        window = [epoch.pop()]
        tokens = lengths[window[0]]
        while epoch and tokens < room * PACK_WINDOW:
            window.append(epoch.pop())
            tokens += lengths[window[-1]]
        groups += best_fit(window, lengths, room, random.Random(seed + len(groups)))  # noqa: S311
    return groups


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
