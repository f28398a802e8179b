"""Epochs are read one after the other, and no batch holds a row twice."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.recipes.training_loop.sampling_order import packed, reading_order


@settings(deadline=None)
@given(st.integers(1, 150), st.integers(1, 40), st.integers(1, 400), st.integers(0, 5))
def test_every_epoch_is_complete_before_the_next(size: int, batch: int, count: int, seed: int) -> None:
    lengths = [1 + place * 7 % 13 for place in range(size)]
    order = reading_order(lengths, count, batch, seed)
    assert len(order) == count
    for end in range(size, count + 1, size):
        read = [order[:end].count(place) for place in range(size)]
        # The batch that ends an epoch may begin the next one.
        assert max(read) - min(read) <= (0 if end % batch == 0 else 1)
    for start in range(0, count, batch):
        rows = order[start : start + batch]
        assert len(set(rows)) == min(len(rows), size) or size < batch


def test_131_rows_in_batches_of_32_are_all_read_in_five_steps() -> None:
    order = reading_order([10] * 131, 320, 32, 0)
    assert set(order[:160]) == set(range(131))
    assert all(len(set(order[at : at + 32])) == 32 for at in range(0, 320, 32))


@pytest.mark.parametrize("size", [1, 7, 40])
def test_packed_rows_hold_no_row_twice_and_read_whole_epochs(size: int) -> None:
    lengths = [5 + place % 9 for place in range(size)]
    groups = packed(lengths, 60, 32, seed=3)
    assert len(groups) == 60
    assert all(len(set(group)) == len(group) and sum(lengths[place] for place in group) <= 32 for group in groups)
    read: list[int] = []
    for group in groups:
        read += group
        counts = [read.count(place) for place in range(size)]
        assert max(counts) - min(counts) <= 1
