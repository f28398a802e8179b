"""Linear modules in oneDNN's packed weight layout: about half the time for the few rows of a decoding step on a CPU."""

from __future__ import annotations

import torch
from torch import nn

# The layout is chosen for about this many rows; every other number works too.
TYPICAL_ROWS = 16


class PackedLinear(nn.Module):
    """A linear module with packed weights; it holds no reference to the original, so that its weights can be freed."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        # Not a parameter: nothing but the product below can read this layout.
        self._weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), TYPICAL_ROWS)
        self._bias = linear.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the product (rows, tokens, out) of x (rows, tokens, in)."""
        y: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, "none", [], "")
        return y


def packed(linear: nn.Linear) -> nn.Module:
    """Return the packed form of a linear module; the module itself on a GPU and without oneDNN."""
    has_onednn: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return PackedLinear(linear) if has_onednn and linear.weight.device.type == "cpu" else linear
