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

    An epoch is complete before the next begins; a batch that spans two holds no row twice unless there are fewer rows
    than its size. Batches are shuffled again, so that lengths do not depend on the step. `draw` gives other rounds than
    epochs; None draws epochs.
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
    """Return the numbers from 0 up to `size`, without it, in random order."""
    epoch = list(range(size))
    chance.shuffle(epoch)
    return epoch


def completed(over: list[int], epoch: list[int], batch_size: int) -> tuple[list[int], list[int]]:
    """Return (batch, rest): a batch of `over`, the rows left from an epoch, and of the next epoch, and its other rows.

    Rows of the next epoch that are in `over`, too, are taken last. If `over` is empty, so is the batch; it is shorter
    than `batch_size` if the epoch has too few rows.
    """
    if not over:
        return [], epoch
    leftover = set(over)
    order = [place for place in epoch if place not in leftover] + [place for place in epoch if place in leftover]
    taken = order[: batch_size - len(over)]
    rest = set(taken)
    return over + taken, [place for place in epoch if place not in rest]


def by_length(places: list[int], lengths: Sequence[int], batch_size: int, chance: random.Random) -> list[int]:
    """Return the places in an order in which rows of similar length share a batch.

    Rows are sorted within windows of WINDOW_BATCHES batches, and the batches of a window are shuffled.
    """
    ordered: list[int] = []
    for start in range(0, len(places), WINDOW_BATCHES * batch_size):
        window = sorted(places[start : start + WINDOW_BATCHES * batch_size], key=lambda place: lengths[place])
        batches = [window[at : at + batch_size] for at in range(0, len(window), batch_size)]
        chance.shuffle(batches)
        ordered += [place for batch in batches for place in batch]
    return ordered


def packed(lengths: Sequence[int], count: int, room: int, seed: int, draw: Draw | None = None) -> list[list[int]]:
    """Return `count` groups of indices, each of at most `room` tokens unless a single row is longer.

    Rows come in shuffled epochs and are packed by best fit decreasing in windows. An epoch is complete before the next
    begins, so no group holds a row twice. `draw` gives other rounds than epochs; None draws epochs.
    """
    chance = random.Random(seed)  # noqa: S311 - an order, no secret
    draw = draw or partial(shuffled, len(lengths))
    groups: list[list[int]] = []
    while len(groups) < count:
        groups += packed_epoch(draw(chance), lengths, room, seed + len(groups))
    return groups[:count]


def packed_rows(lengths: Sequence[int], rows: int, room: int, seed: int, draw: Draw | None = None) -> int:
    """Return the number of groups that packing makes of at least `rows` rows, read in whole epochs."""
    chance = random.Random(seed)  # noqa: S311 - an order, no secret
    draw = draw or partial(shuffled, len(lengths))
    groups: list[list[int]] = []
    while rows > 0:
        epoch = draw(chance)
        rows -= len(epoch)
        groups += packed_epoch(epoch, lengths, room, seed + len(groups))
    return len(groups)


def packed_epoch(epoch: list[int], lengths: Sequence[int], room: int, seed: int) -> list[list[int]]:
    """Return the packed groups of one shuffled epoch; the list `epoch` is emptied."""
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
    """Return the places packed into groups of at most `room` tokens, in random order.

    Places are indices into `lengths`. Each row, longest first, is put into the group where it leaves the least room, or
    else into a new one; a row longer than `room` is a group of its own.
    """
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
