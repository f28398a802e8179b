"""KV cache of all running requests: one row a request, each with its own length, in tensors that grow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

FIRST_ROWS = 4
FIRST_LENGTH = 256


@dataclass
class Window:
    """The place that the next forward pass writes to: new rows from their start, or one token in each running row."""

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
        """Allocate the memory that the window needs, with the type and device of these states."""
        self._grow(self._window.first + self._window.count, self._window.length, key_states, value_states)

    def reserve(self, rows: int, length: int) -> None:
        """Grow the memory to at least so many rows and so long rows; the layer must have rows already."""
        self._grow(rows, length, self._keys, self._values)

    def _grow(self, rows: int, length: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        if rows > self._keys.shape[0] or length > self._keys.shape[2]:
            self._keys = _grown(self._keys, keys, rows, length)
            self._values = _grown(self._values, values, rows, length)
            self._window.moves += 1

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the new keys and values at the window; return the keys and values that its rows may attend to."""
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

    def memory(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return all keys and all values: (rows, heads, length, head size), contiguous."""
        return self._keys, self._values

    def move(self, source: int, target: int) -> None:
        """Copy row `source` over row `target`."""
        self._keys[target] = self._keys[source]
        self._values[target] = self._values[source]

    def clear(self, row: int) -> None:
        """Set a row to zero."""
        self._keys[row] = 0
        self._values[row] = 0

    def release(self) -> None:
        """Free the memory of the keys and values; the layer has no rows afterwards."""
        self._keys = self._keys.new_empty(0, 0, 0, 0)
        self._values = self._values.new_empty(0, 0, 0, 0)
        self._window.moves += 1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the number of keys that a query attends to, and their offset, 0.

        It is `query_length` for new rows, and the window's length, with the new token, for running ones.
        """
        return (query_length if self._window.places is None else self._window.length), 0

    def get_seq_length(self) -> int:
        """Return the longest row's number of tokens before this forward pass."""
        return 0 if self._window.places is None else self._window.length - 1

    def get_max_length(self) -> int:
        """Return -1: there is no limit."""
        return -1


class RowCache(Cache):
    """KV cache of a model's `layer_count` layers, with the interface of transformers' Cache.

    Call `start` or `extend` before each forward pass to say what it writes.
    """

    def __init__(self, layer_count: int) -> None:
        self.window = Window()
        self._rows = [RowLayer(self.window) for _ in range(layer_count)]
        super().__init__(layers=list(self._rows))

    def start(self, first: int, count: int, length: int) -> None:
        """Make the next forward pass fill `count` new rows from row `first` on with `length` tokens."""
        self.window.first, self.window.count = first, count
        self.window.places, self.window.length = None, length

    @property
    def moves(self) -> int:
        """A counter that changes whenever keys and values have moved in memory."""
        return self.window.moves

    def reserve(self, rows: int, length: int) -> None:
        """Grow the memory of every layer to at least so many rows and so long rows. Needs a running row."""
        for layer in self._rows:
            layer.reserve(rows, length)

    def memory(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return the keys and values of each layer: (rows, heads, length, head size), contiguous."""
        return [layer.memory() for layer in self._rows]

    def extend(self, positions: torch.Tensor, length: int) -> None:
        """Make the next forward pass add a token to each of the first rows at `positions` (rows,), below `length`."""
        self.window.first, self.window.count = 0, len(positions)
        rows = torch.arange(len(positions), device=positions.device)
        self.window.places, self.window.length = (rows, slice(None), positions), length

    def remove(self, row: int, last: int) -> None:
        """Free a row by copying row `last` into its place, so that running rows stay contiguous."""
        if row != last:
            for layer in self._rows:
                layer.move(last, row)

    def clear(self, row: int) -> None:
        """Set a row to zero, so that no NaN stays for the next request: even a masked NaN spoils the sum (0 * NaN)."""
        for layer in self._rows:
            layer.clear(row)

    def release(self) -> None:
        """Free the memory. Call it only with no running row."""
        for layer in self._rows:
            layer.release()


def _grown(old: torch.Tensor, states: torch.Tensor, rows: int, length: int) -> torch.Tensor:
    rows = _doubled(max(old.shape[0], FIRST_ROWS), rows)
    length = _doubled(max(old.shape[2], FIRST_LENGTH), length)
    grown = states.new_zeros(rows, states.shape[1], length, states.shape[3])
    if old.numel():
        grown[: old.shape[0], :, : old.shape[2]] = old
    return grown


def _doubled(size: int, needed: int) -> int:
    while size < needed:
        size *= 2
    return size
