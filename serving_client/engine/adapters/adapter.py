"""Reading of a PEFT LoRA folder into matrices, checked against the base model and ready to multiply."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from serving_client.engine.adapters.adapter_config import LoraShape, read_lora_shape
from serving_client.engine.errors import AdapterMissing, AdapterUnusable

WEIGHTS_NAME = "adapter_model.safetensors"
KEY_PREFIX = "base_model.model."
MATRIX_SUFFIXES = {".lora_A.weight": "A", ".lora_B.weight": "B"}

ModuleShapes = Mapping[str, tuple[int, int]]
"""The base model's linear modules: name -> (in features, out features)."""


@dataclass(frozen=True)
class LowRank:
    """Low-rank update of one linear module, y += (x @ down.T) @ up, with `down` (rank, in) and `up` (rank, out).

    The adapter's scale is folded into `up`.
    """

    down: torch.Tensor  # (rank, in)
    up: torch.Tensor  # (rank, out)

    @property
    def rank(self) -> int:
        """Return the number of rows of `down`."""
        return self.down.shape[0]


@dataclass(frozen=True, eq=False)
class Adapter:
    """One loaded adapter: its name, and the update of each linear module by the module's name.

    Adapters are compared by identity, so two loads under one name are different adapters. `block` is the pinned memory
    that holds all matrices one after the other, None if they are not pinned.
    """

    name: str
    modules: dict[str, LowRank]
    block: torch.Tensor | None = None  # in pinned memory: all matrices, one after the other

    def matrices(self, device: torch.device) -> list[torch.Tensor]:
        """Return `down` and `up` of each module in turn.

        With a pinned block they are copies on the device, sent in one asynchronous copy; without one they are the
        matrices themselves, wherever they are.
        """
        flat = _flat(self.modules)
        return flat if self.block is None else _cut(self.block.to(device, non_blocking=True), flat)


def read_adapter(
    name: str,
    folder: Path,
    base: ModuleShapes,
    *,
    max_rank: int,
    dtype: torch.dtype = torch.float32,
    is_pinned: bool = False,
) -> Adapter:
    """Read a PEFT LoRA folder as an adapter, with its matrices in `dtype`.

    `base` holds the input and output widths of the linear modules that the adapter may update. Raises AdapterMissing if
    the folder has no adapter_config.json or no safetensors weights, and AdapterUnusable if they cannot be read, do not
    match `base`, hold NaN or infinity, use an option that the engine does not support, or have a rank over `max_rank`.
    With `is_pinned` the matrices are in pinned memory, from which a GPU copies asynchronously.
    """
    shape = read_lora_shape(folder)
    if shape.largest_rank > max_rank:
        raise AdapterUnusable(f"LoRA rank {shape.largest_rank} is greater than max_lora_rank {max_rank}.")
    matrices = _read_matrices(folder / WEIGHTS_NAME)
    if not matrices:
        raise AdapterUnusable(f"{WEIGHTS_NAME} holds no LoRA matrices.")
    modules = {module: _low_rank(module, pair, shape, base, dtype) for module, pair in matrices.items()}
    return _pinned(name, modules) if is_pinned else Adapter(name, modules)


def _pinned(name: str, modules: dict[str, LowRank]) -> Adapter:
    flat = _flat(modules)
    block = torch.empty(sum(matrix.numel() for matrix in flat), dtype=flat[0].dtype, pin_memory=True)
    torch.cat([matrix.flatten() for matrix in flat], out=block)
    parts = iter(_cut(block, flat))
    return Adapter(name, {module: LowRank(next(parts), next(parts)) for module in modules}, block)


def _flat(modules: dict[str, LowRank]) -> list[torch.Tensor]:
    return [matrix for update in modules.values() for matrix in (update.down, update.up)]


def _cut(block: torch.Tensor, shaped: list[torch.Tensor]) -> list[torch.Tensor]:
    """Split the block into consecutive parts with the shapes of the given matrices."""
    parts = torch.split(block, [matrix.numel() for matrix in shaped])
    return [part.view_as(matrix) for part, matrix in zip(parts, shaped, strict=True)]


def _read_matrices(path: Path) -> dict[str, dict[str, torch.Tensor]]:
    if not path.is_file():
        raise AdapterMissing(f"No {WEIGHTS_NAME} in {path.parent}: only safetensors are read.")
    matrices: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in _tensors(path):
        module, side = _module_and_side(key)
        matrices.setdefault(module, {})[side] = tensor
    return matrices


def _tensors(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 - not a dict
                yield key, file.get_tensor(key)
    except (SafetensorError, OSError) as error:
        raise AdapterUnusable(str(error)) from error


def _module_and_side(key: str) -> tuple[str, str]:
    for suffix, side in MATRIX_SUFFIXES.items():
        if key.startswith(KEY_PREFIX) and key.endswith(suffix):
            return key.removeprefix(KEY_PREFIX).removesuffix(suffix), side
    raise AdapterUnusable(f"The tensor '{key}' is not the lora_A or lora_B weight of a linear module.")


def _low_rank(
    module: str, pair: dict[str, torch.Tensor], shape: LoraShape, base: ModuleShapes, dtype: torch.dtype
) -> LowRank:
    if module not in base:
        raise AdapterUnusable(f"The base model has no linear module '{module}' that takes an adapter.")
    if missing := {"A", "B"} - pair.keys():
        raise AdapterUnusable(f"The module '{module}' has no lora_{missing.pop()} weight.")
    inputs, outputs = base[module]
    rank = shape.rank_of(module)
    _check_shape(module, "A", pair["A"], (rank, inputs))
    _check_shape(module, "B", pair["B"], (outputs, rank))
    return _folded(module, pair, shape.scale_of(module), dtype)


def _check_shape(module: str, side: str, matrix: torch.Tensor, expected: tuple[int, int]) -> None:
    if tuple(matrix.shape) != expected:
        raise AdapterUnusable(
            f"lora_{side} of '{module}' has the shape {tuple(matrix.shape)}; base model and config ask for {expected}."
        )


def _folded(module: str, pair: dict[str, torch.Tensor], scale: float, dtype: torch.dtype) -> LowRank:
    # A copy: the tensors read are views of the file, and a file cut short later would kill the process.
    down = pair["A"].to(dtype, copy=True).contiguous()
    up = (pair["B"].float() * scale).to(dtype).T.contiguous()
    if not (torch.isfinite(down).all() and torch.isfinite(up).all()):
        raise AdapterUnusable(f"The weights of '{module}' hold NaN or infinity.")
    return LowRank(down, up)
