"""Each row of a batch times its own adapter, in two Triton kernels a module: shrink and expand. For GPUs alone.

A row is one token. Rows without an adapter read nothing. The weights of all adapters lie in slots: A as
(slots, rank, in), B as (slots, out, rank) in any order of its last two dimensions, so that the same kernels serve
vLLM's slots and the embedded engine's. Modules that the base model packs (q, k, v; gate, up) are slices of one call.
The idea is that of Punica's and S-LoRA's gathered products (arXiv 2310.18547, 2311.03285).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl

MOST_SLICES = 3  # of one launch


class Tile(NamedTuple):
    """The share of a module that one Triton program computes, and its warps.

    It has `rows` of the batch. shrink has `ranks` ranks, and reads `width` inputs at a time; expand has `width`
    outputs, and reads `ranks` ranks at a time.
    """

    rows: int
    ranks: int
    width: int
    warps: int


def shrink_tile(wide: int) -> Tile:
    """Return the tile that was fastest on an H200 for inputs of this width.

    Measured with widths of 4,096 and 14,336, ranks of 16 and 64, and 32 and 128 rows.
    """
    return Tile(rows=1, ranks=2, width=1024 if wide > 8192 else 2048, warps=4)


def expand_tile(rank: int, *, is_spread: bool = False) -> Tile:
    """Return the tile that was fastest on an H200 for ranks of 16 and 64 and outputs of 1,024 to 14,336.

    `is_spread`: the outputs of a rank lie next to each other, not the ranks of an output.
    """
    if is_spread:
        # A second warp would read columns so far apart that the tile takes up to four times as long.
        ranks = min(32, triton.next_power_of_2(rank))
        return Tile(rows=1, ranks=ranks, width=4096 // max(8, ranks), warps=1)
    ranks = min(64, triton.next_power_of_2(rank))
    return Tile(rows=1, ranks=ranks, width=4096 // ranks, warps=4) if ranks < 64 else Tile(1, ranks, 128, 2)


@triton.jit
def _slot_of(slots, active, row, row_count, slot_count):
    """The row's slot, -1 for none.

    Rows beyond the batch and batches without adapters keep what an earlier batch wrote into `slots`, and memory that
    nothing wrote may hold anything.
    """
    slot = tl.load(slots + row, mask=row < row_count, other=-1).to(tl.int64)
    slot = tl.where(slot < slot_count, slot, -1)
    if active is not None:
        # Sorted; at most one entry is -1 where any adapter is active.
        any_active = (tl.load(active) >= 0) | (tl.load(active + 1) >= 0)
        slot = tl.where(any_active, slot, -1)
    return slot


@triton.jit
def _shrink(
    x,
    down0,
    down1,
    down2,
    inner,
    slots,
    active,
    ranks,
    scale,
    row_count,
    slot_count,
    x_stride,
    WIDE: tl.constexpr,
    RANK: tl.constexpr,
    SLICES: tl.constexpr,
    ROWS: tl.constexpr,
    RANKS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    groups = tl.cdiv(RANK, RANKS)
    part = tl.program_id(1)
    which = part // groups
    places = (part % groups) * RANKS + tl.arange(0, RANKS)
    down = down0
    if SLICES > 1:
        if which == 1:
            down = down1
    if SLICES > 2:
        if which == 2:
            down = down2
    for number in tl.static_range(ROWS):
        row = tl.program_id(0) * ROWS + number
        slot = _slot_of(slots, active, row, row_count, slot_count)
        own = slot * 0 + RANK
        if ranks is not None:
            own = tl.load(ranks + which * slot_count + slot, mask=slot >= 0, other=0).to(tl.int64)
        total = tl.zeros([RANKS], dtype=tl.float32)
        if (slot >= 0) & ((part % groups) * RANKS < own):
            lines = down + (slot * RANK + places)[:, None] * WIDE
            sums = tl.zeros([RANKS, WIDTH], dtype=tl.float32)
            for start in tl.static_range(0, WIDE, WIDTH):
                columns = start + tl.arange(0, WIDTH)
                inside = columns < WIDE
                values = tl.load(x + row * x_stride + columns, mask=inside, other=0).to(tl.float32)
                weights = tl.load(lines + columns[None, :], mask=(places < RANK)[:, None] & inside[None, :], other=0)
                sums += weights.to(tl.float32) * values[None, :]
            total = tl.sum(sums, axis=1) * scale
        target = inner + (which * row_count + row) * RANK + places
        tl.store(target, total, mask=(places < RANK) & (row < row_count))


@triton.jit
def _expand(
    inner,
    up0,
    up1,
    up2,
    y,
    slots,
    active,
    ranks,
    row_count,
    slot_count,
    out0,
    out1,
    out2,
    first,
    up_out,
    up_rank,
    y_stride,
    RANK: tl.constexpr,
    SLICES: tl.constexpr,
    SPREAD: tl.constexpr,
    ADDS: tl.constexpr,
    ROWS: tl.constexpr,
    RANKS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    part = tl.program_id(1)
    which, up, out, begin = part * 0, up0, out0, first
    if SLICES > 1:
        if part >= tl.cdiv(out0, WIDTH):
            part -= tl.cdiv(out0, WIDTH)
            which, up, out, begin = 1, up1, out1, first + out0
    if SLICES > 2:
        if (which == 1) & (part >= tl.cdiv(out1, WIDTH)):
            part -= tl.cdiv(out1, WIDTH)
            which, up, out, begin = 2, up2, out2, first + out0 + out1
    columns = part * WIDTH + tl.arange(0, WIDTH)
    inside = columns < out
    for number in tl.static_range(ROWS):
        row = tl.program_id(0) * ROWS + number
        slot = _slot_of(slots, active, row, row_count, slot_count)
        own = RANK
        if ranks is not None:
            own = tl.load(ranks + which * slot_count + slot, mask=slot >= 0, other=0)
        target = y + row * y_stride + begin + columns
        if (slot >= 0) & (own > 0):
            total = tl.zeros([WIDTH], dtype=tl.float32)
            lines = up + slot * out * RANK + columns[:, None] * up_out
            for start in range(0, own, RANKS):
                places = start + tl.arange(0, RANKS)
                known = places < RANK
                values = tl.load(inner + (which * row_count + row) * RANK + places, mask=known, other=0)
                # Where the outputs lie next to each other, those of one rank are as long as the slice.
                lanes = places * out if SPREAD else places * up_rank
                weights = tl.load(lines + lanes[None, :], mask=inside[:, None] & known[None, :], other=0)
                total += tl.sum(weights.to(tl.float32) * values.to(tl.float32)[None, :], axis=1)
            if ADDS:
                total += tl.load(target, mask=inside, other=0).to(tl.float32)
            tl.store(target, total.to(y.dtype.element_ty), mask=inside)
        else:
            if not ADDS:
                tl.store(target, tl.zeros([WIDTH], dtype=y.dtype.element_ty), mask=inside & (row < row_count))


def shrink(
    x: torch.Tensor,
    downs: Sequence[torch.Tensor],
    inner: torch.Tensor,
    slots: torch.Tensor,
    *,
    active: torch.Tensor | None = None,
    ranks: torch.Tensor | None = None,
    scale: float = 1.0,
    tile: Tile | None = None,
) -> None:
    """Write `scale` * x A^T of each row's slot into `inner` (slices, rows, rank); zeros for rows without an adapter.

    x is (rows, in), contiguous within a row. `downs` has one contiguous tensor (slots, rank, in) for each slice;
    `slots` (rows,) is the slot of each row, -1 for none. `active` (at least 2,) lists the adapters of the batch, and
    has only negative numbers if there is none; None if that is not known. `ranks` (slices, slots) is the rank of what
    lies in each slot, None for the slots' full rank.
    """
    rows, wide = x.shape
    slot_count, rank = downs[0].shape[0], downs[0].shape[-2]
    tile = tile or shrink_tile(wide)
    for first in range(0, len(downs), MOST_SLICES):
        group = downs[first : first + MOST_SLICES]
        down0, down1, down2 = (*group, group[0], group[0])[:MOST_SLICES]
        grid = (triton.cdiv(rows, tile.rows), len(group) * triton.cdiv(rank, tile.ranks))
        _shrink[grid](
            x,
            down0,
            down1,
            down2,
            inner[first:],
            slots,
            active,
            None if ranks is None else ranks[first:],
            scale,
            rows,
            slot_count,
            x.stride(0),
            WIDE=wide,
            RANK=rank,
            SLICES=len(group),
            ROWS=tile.rows,
            RANKS=tile.ranks,
            WIDTH=tile.width,
            num_warps=tile.warps,
        )


def expand(
    inner: torch.Tensor,
    ups: Sequence[torch.Tensor],
    y: torch.Tensor,
    slots: torch.Tensor,
    *,
    active: torch.Tensor | None = None,
    ranks: torch.Tensor | None = None,
    start: int = 0,
    adds: bool = True,
    tile: Tile | None = None,
) -> None:
    """Add `inner` B^T, B being that of each row's slot, to y (rows, all outputs), from column `start` on.

    `inner` (slices, rows, rank); `ups` has one tensor (slots, out, rank) for each slice, and the slices' outputs follow
    one another in y. In each tensor the slots lie one after the other in memory. The slices of one module have the same
    memory order of their last two dimensions. With `adds` False the columns are overwritten, and rows without an
    adapter become zero. The other arguments are those of `shrink`.
    """
    rows = y.shape[0]
    slot_count, _, rank = ups[0].shape
    is_spread = ups[0].stride(1) == 1
    tile = tile or expand_tile(rank, is_spread=is_spread)
    for first in range(0, len(ups), MOST_SLICES):
        group = ups[first : first + MOST_SLICES]
        up0, up1, up2 = (*group, group[0], group[0])[:MOST_SLICES]
        widths = [up.shape[1] for up in group]
        out0, out1, out2 = (*widths, 1, 1)[:MOST_SLICES]
        grid = (triton.cdiv(rows, tile.rows), sum(triton.cdiv(width, tile.width) for width in widths))
        _expand[grid](
            inner[first:],
            up0,
            up1,
            up2,
            y,
            slots,
            active,
            None if ranks is None else ranks[first:],
            rows,
            slot_count,
            out0,
            out1,
            out2,
            start,
            up0.stride(1),
            up0.stride(2),
            y.stride(0),
            RANK=rank,
            SLICES=len(group),
            SPREAD=is_spread,
            ADDS=adds,
            ROWS=tile.rows,
            RANKS=tile.ranks,
            WIDTH=tile.width,
            num_warps=tile.warps,
        )
        start += sum(widths)


def with_rows(
    x: torch.Tensor, y: torch.Tensor, down: torch.Tensor, up: torch.Tensor, slots: torch.Tensor
) -> torch.Tensor:
    """Add the update of each row's adapter, for inputs x (rows, 1, in), to y (rows, 1, out) in place; return y.

    `down` (slots, rank, in) and `up` (slots, rank, out) hold all adapters; `slots` (rows,) is the slot of each row, -1
    for none. All tensors must be contiguous.
    """
    inner = torch.empty(1, len(slots), down.shape[1], dtype=torch.float32, device=x.device)
    shrink(x[:, 0], (down,), inner, slots)
    expand(inner, (up.mT,), y[:, 0], slots)
    return y
