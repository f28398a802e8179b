"""Keys and values of all running requests: one row a request, each with its own length, in tensors that grow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

FIRST_ROWS = 4
FIRST_LENGTH = 256


@dataclass
class Window:
    """The write position of the next forward: new rows from their start, or one token for each running row."""

    first: int = 0
    count: int = 0
    # Rows, heads and positions of one more token each; None for new rows.
    places: tuple[torch.Tensor, slice, torch.Tensor] | None = None
    length: int = 0  # the longest row, with the new token
    moves: int = 0  # how often a layer's tensors were replaced


class RowLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """Keys and values of one layer: (rows, heads, length, head size)."""

    def __init__(self, window: Window) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._window = window
        self._keys = torch.empty(0, 0, 0, 0)
        self._values = torch.empty(0, 0, 0, 0)

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Makes room for what the window says."""
        self._grow(self._window.first + self._window.count, self._window.length, key_states, value_states)

    def reserve(self, rows: int, length: int) -> None:
        """Makes room in a layer that has rows."""
        self._grow(rows, length, self._keys, self._values)

    def _grow(self, rows: int, length: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        if rows > self._keys.shape[0] or length > self._keys.shape[2]:
            self._keys = _grown(self._keys, keys, rows, length)
            self._values = _grown(self._values, values, rows, length)
            self._window.moves += 1

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Writes what the window says; returns all that its rows may look at."""
        self.lazy_initialization(key_states, value_states)
        if self._window.places is None:
            return self._start_rows(key_states, value_states)
        self._keys[self._window.places] = key_states[:, :, 0]
        self._values[self._window.places] = value_states[:, :, 0]
        count, length = self._window.count, self._window.length
        return self._keys[:count, :, :length], self._values[:count, :, :length]

    def _start_rows(self, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        rows = slice(self._window.first, self._window.first + self._window.count)
        self._keys[rows, :, : keys.shape[2]] = keys
        self._values[rows, :, : values.shape[2]] = values
        return keys, values

    def move(self, source: int, target: int) -> None:
        """Copies a row over another."""
        self._keys[target] = self._keys[source]
        self._values[target] = self._values[source]

    def clear(self, row: int) -> None:
        """Forgets a row's numbers."""
        self._keys[row] = 0
        self._values[row] = 0

    def release(self) -> None:
        """Gives the memory back."""
        self._keys = self._keys.new_empty(0, 0, 0, 0)
        self._values = self._values.new_empty(0, 0, 0, 0)
        self._window.moves += 1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length of the keys that a query sees, and their offset."""
        return (query_length if self._window.places is None else self._window.length), 0

    def get_seq_length(self) -> int:
        """Tokens before this forward, of the longest row."""
        return 0 if self._window.places is None else self._window.length - 1

    def get_max_length(self) -> int:
        """No limit of its own."""
        return -1


class RowCache(Cache):
    """The cache of a whole model, in the form that transformers calls."""

    def __init__(self, layer_count: int) -> None:
        self.window = Window()
        self._rows = [RowLayer(self.window) for _ in range(layer_count)]
        super().__init__(layers=list(self._rows))

    def start(self, first: int, count: int, length: int) -> None:
        """The next forward fills `count` new rows from row `first` with `length` tokens."""
        self.window.first, self.window.count = first, count
        self.window.places, self.window.length = None, length

    @property
    def moves(self) -> int:
        """Another number than before tells that keys and values lie elsewhere."""
        return self.window.moves

    def reserve(self, rows: int, length: int) -> None:
        """Makes room for so many rows of that length. Only with a running row."""
        for layer in self._rows:
            layer.reserve(rows, length)

    def extend(self, positions: torch.Tensor, length: int) -> None:
        """The next forward adds a token to the first rows; `positions` (rows,) says where, below `length`."""
        self.window.first, self.window.count = 0, len(positions)
        rows = torch.arange(len(positions), device=positions.device)
        self.window.places, self.window.length = (rows, slice(None), positions), length

    def remove(self, row: int, last: int) -> None:
        """Frees a row: the last one takes its place, so that running rows stay together."""
        if row != last:
            for layer in self._rows:
                layer.move(last, row)

    def clear(self, row: int) -> None:
        """Zeroes a row. A masked NaN still spoils the sum (0 * NaN), so a poisoned row must not stay for the next."""
        for layer in self._rows:
            layer.clear(row)

    def release(self) -> None:
        """Gives the memory back. Only with no running row."""
        for layer in self._rows:
            layer.release()


def _grown(held: torch.Tensor, states: torch.Tensor, rows: int, length: int) -> torch.Tensor:
    rows = _doubled(max(held.shape[0], FIRST_ROWS), rows)
    length = _doubled(max(held.shape[2], FIRST_LENGTH), length)
    grown = states.new_zeros(rows, states.shape[1], length, states.shape[3])
    if held.numel():
        grown[: held.shape[0], :, : held.shape[2]] = held
    return grown


def _doubled(size: int, needed: int) -> int:
    while size < needed:
        size *= 2
    return size
