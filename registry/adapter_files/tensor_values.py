"""Numbers of safetensors files as numpy arrays, with bfloat16, which numpy lacks. No torch."""

from __future__ import annotations

import numpy as np

FLOATS = ("F32", "F16", "BF16", "F64")


def as_float32(dtype: str, raw: bytes) -> np.ndarray:
    """Return little-endian F32, F16, BF16 or F64 bytes as a flat float32 array. Raises KeyError for another `dtype`."""
    if dtype == "BF16":
        return (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(raw, {"F32": "<f4", "F16": "<f2", "F64": "<f8"}[dtype]).astype(np.float32, copy=False)


def rounded_to(dtype: str, values: np.ndarray) -> np.ndarray:
    """Return float32 values rounded to the precision of F16 or BF16, still as float32.

    They are unchanged for any other `dtype`.
    """
    if dtype == "F16":
        return values.astype(np.float16).astype(np.float32)
    if dtype == "BF16":
        bits = values.view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).view(np.float32)
    return values
