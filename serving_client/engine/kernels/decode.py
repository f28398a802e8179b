"""Triton kernels of a decoding step beside its matrix products: norm, rotation, attention, gate. For GPUs alone.

A row is one token of one request. Sums are taken in float32, and what transformers rounds to the model's dtype between
two operations is rounded here as well, so that both give the same tokens. Attention reads the keys and values of a row
up to its own position, for all query heads of a key head at once (split over the length as Flash-Decoding does,
https://crfm.stanford.edu/2023/10/12/flashdecoding.html).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

# Programs that keep an H200 busy, and the fewest keys that are worth a program of their own.
PROGRAMS, KEYS = 264, 256
MOST_SPLITS = 16


@triton.jit
def _add_norm(x, residual, weight, normed, width, eps, ADDS: tl.constexpr, WIDTH: tl.constexpr):
    row = tl.program_id(0)
    columns = tl.arange(0, WIDTH)
    inside = columns < width
    values = tl.load(x + row * width + columns, mask=inside, other=0)
    if ADDS:
        values += tl.load(residual + row * width + columns, mask=inside, other=0)
    tl.store(residual + row * width + columns, values, mask=inside)
    wide = values.to(tl.float32)
    scaled = wide * tl.rsqrt(tl.sum(wide * wide, axis=0) / width + eps)
    scales = tl.load(weight + columns, mask=inside, other=0)
    tl.store(normed + row * width + columns, scaled.to(values.dtype) * scales, mask=inside)


def add_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float, *, adds: bool = True
) -> torch.Tensor:
    """Add x (rows, width) to `residual` in place, or with `adds` False copy x there; return the result's RMS norm.

    The norm (rows, width) is scaled by `weight` (width,).
    """
    normed = torch.empty_like(x)
    width = x.shape[1]
    size = triton.next_power_of_2(width)
    _add_norm[(x.shape[0],)](x, residual, weight, normed, width, eps, ADDS=adds, WIDTH=size, num_warps=8)
    return normed


@triton.jit
def _rotate(
    qkv,
    cos,
    sin,
    positions,
    keys,
    values,
    query_heads,
    key_heads,
    row_stride,
    cache_row,
    cache_head,
    HALF: tl.constexpr,
    SIZE: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    columns = tl.arange(0, SIZE)
    inside = columns < HALF
    source = qkv + row * row_stride + head * 2 * HALF + columns
    first = tl.load(source, mask=inside, other=0)
    second = tl.load(source + HALF, mask=inside, other=0)
    place = tl.load(positions + row) * 2 * HALF + columns
    if head < query_heads + key_heads:
        turn = row * 2 * HALF + columns
        left = first * tl.load(cos + turn, mask=inside, other=0) - second * tl.load(sin + turn, mask=inside, other=0)
        turn += HALF
        right = second * tl.load(cos + turn, mask=inside, other=0) + first * tl.load(sin + turn, mask=inside, other=0)
        if head < query_heads:
            tl.store(source, left, mask=inside)
            tl.store(source + HALF, right, mask=inside)
        else:
            target = keys + row * cache_row + (head - query_heads) * cache_head + place
            tl.store(target, left, mask=inside)
            tl.store(target + HALF, right, mask=inside)
    else:
        target = values + row * cache_row + (head - query_heads - key_heads) * cache_head + place
        tl.store(target, first, mask=inside)
        tl.store(target + HALF, second, mask=inside)


def rotate_and_store(
    qkv: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    positions: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
) -> None:
    """Rotate the queries in place, and write rotated keys and values into the cache at each row's position.

    qkv (rows, (heads + 2 key heads) x size) holds queries, keys and values; `cos` and `sin` are (rows, size); `keys`
    and `values` (rows or more, key heads, length, size) are contiguous.
    """
    rows, width = qkv.shape
    _, key_heads, _, size = keys.shape
    heads = width // size
    _rotate[(rows, heads)](
        qkv,
        cos,
        sin,
        positions,
        keys,
        values,
        heads - 2 * key_heads,
        key_heads,
        qkv.stride(0),
        keys.stride(0),
        keys.stride(1),
        HALF=size // 2,
        SIZE=triton.next_power_of_2(size // 2),
        num_warps=1,
    )


@triton.jit
def _attend(
    queries,
    keys,
    values,
    positions,
    out,
    largest,
    weights,
    scaling,
    query_row,
    cache_row,
    cache_head,
    GROUP: tl.constexpr,
    GROUPS: tl.constexpr,
    SIZE: tl.constexpr,
    SIZES: tl.constexpr,
    BLOCK: tl.constexpr,
    SPLITS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    row, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    count = (tl.load(positions + row) + 1).to(tl.int32)
    share = tl.cdiv(tl.cdiv(count, SPLITS), BLOCK) * BLOCK
    begin = split * share
    end = tl.minimum(begin + share, count)
    member, column = tl.arange(0, GROUPS), tl.arange(0, SIZES)
    chosen = (member < GROUP)[:, None] & (column < SIZE)[None, :]
    here = member[:, None] * SIZE + column[None, :]
    block = tl.load(queries + row * query_row + head * GROUP * SIZE + here, mask=chosen, other=0)
    base = row.to(tl.int64) * cache_row + head * cache_head
    top = tl.full([GROUPS], float("-inf"), tl.float32)
    total = tl.zeros([GROUPS], tl.float32)
    sums = tl.zeros([GROUPS, SIZES], tl.float32)
    for start in range(begin, end, BLOCK):
        places = start + tl.arange(0, BLOCK)
        known = (places < end)[:, None] & (column < SIZE)[None, :]
        at = base + places[:, None] * SIZE + column[None, :]
        scores = tl.dot(block, tl.trans(tl.load(keys + at, mask=known, other=0)), input_precision=PRECISION) * scaling
        scores = tl.where((places < end)[None, :], scores, float("-inf"))
        highest = tl.maximum(top, tl.max(scores, axis=1))
        shares = tl.exp(scores - highest[:, None])
        fade = tl.exp(top - highest)
        total = total * fade + tl.sum(shares, axis=1)
        read = tl.load(values + at, mask=known, other=0)
        sums = sums * fade[:, None] + tl.dot(shares.to(read.dtype), read, input_precision=PRECISION)
        top = highest
    heads = tl.num_programs(1) * GROUP
    if SPLITS == 1:
        target = out + (row * heads + head * GROUP) * SIZE + here
        tl.store(target, (sums / total[:, None]).to(out.dtype.element_ty), mask=chosen)
    else:
        part = (split * tl.num_programs(0) + row) * heads + head * GROUP
        tl.store(out + part * SIZE + here, sums, mask=chosen)
        tl.store(largest + part + member, top, mask=member < GROUP)
        tl.store(weights + part + member, total, mask=member < GROUP)


@triton.jit
def _join(parts, largest, weights, out, count, SIZE: tl.constexpr, SIZES: tl.constexpr, SPLITS: tl.constexpr):
    here = tl.program_id(0)
    column = tl.arange(0, SIZES)
    inside = column < SIZE
    top = tl.load(largest + here)
    for split in tl.static_range(1, SPLITS):
        top = tl.maximum(top, tl.load(largest + split * count + here))
    total = 0.0
    sums = tl.zeros([SIZES], tl.float32)
    for split in tl.static_range(SPLITS):
        fade = tl.exp(tl.load(largest + split * count + here) - top)
        total += fade * tl.load(weights + split * count + here)
        sums += fade * tl.load(parts + (split * count + here) * SIZE + column, mask=inside, other=0)
    tl.store(out + here * SIZE + column, (sums / total).to(out.dtype.element_ty), mask=inside)


def splits_for(rows: int, key_heads: int, length: int) -> int:
    """Return how many programs share a row's keys, a power of two, so that few long rows keep the GPU busy."""
    wanted = min(triton.cdiv(PROGRAMS, rows * key_heads), length // KEYS, MOST_SPLITS)
    splits: int = triton.next_power_of_2(wanted + 1) // 2
    return max(1, splits)


def attend(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    positions: torch.Tensor,
    scaling: float,
    length: int,
) -> torch.Tensor:
    """Return the attention (rows, heads x size) of one query token in each row to the row's keys up to its position.

    `queries` (rows, at least heads x size) may be part of wider rows; `keys` and `values` (rows or more, key heads,
    any, size) are contiguous; every position is below `length`.
    """
    rows, key_heads, size = len(positions), keys.shape[1], keys.shape[3]
    group = queries.shape[1] // size // key_heads
    heads = group * key_heads
    splits = splits_for(rows, key_heads, length)
    out = queries.new_empty(rows, heads * size)
    parts, largest, weights = out, positions, positions
    if splits > 1:
        parts = queries.new_empty(splits, rows, heads, size, dtype=torch.float32)
        largest, weights = queries.new_empty(2, splits, rows, heads, dtype=torch.float32)
    sizes = triton.next_power_of_2(size)
    _attend[(rows, key_heads, splits)](
        queries,
        keys,
        values,
        positions,
        parts,
        largest,
        weights,
        scaling,
        queries.stride(0),
        keys.stride(0),
        keys.stride(1),
        GROUP=group,
        GROUPS=max(16, triton.next_power_of_2(group)),
        SIZE=size,
        SIZES=sizes,
        BLOCK=64 if queries.element_size() == 2 else 32,
        SPLITS=splits,
        PRECISION="ieee",
        num_warps=4,
    )
    if splits > 1:
        _join[(rows * heads,)](
            parts, largest, weights, out, rows * heads, SIZE=size, SIZES=sizes, SPLITS=splits, num_warps=1
        )
    return out


@triton.jit
def _gate(both, out, width, WIDTH: tl.constexpr):
    row = tl.program_id(0)
    columns = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    inside = columns < width
    gates = tl.load(both + row * 2 * width + columns, mask=inside, other=0)
    wide = gates.to(tl.float32)
    opened = (wide * tl.sigmoid(wide)).to(gates.dtype)
    values = tl.load(both + row * 2 * width + width + columns, mask=inside, other=0)
    tl.store(out + row * width + columns, opened * values, mask=inside)


def gate(both: torch.Tensor) -> torch.Tensor:
    """Return silu(first half) x second half of (rows, 2 x width)."""
    rows, width = both.shape[0], both.shape[1] // 2
    out = both.new_empty(rows, width)
    _gate[(rows, triton.cdiv(width, 1024))](both, out, width, WIDTH=1024, num_warps=4)
    return out
