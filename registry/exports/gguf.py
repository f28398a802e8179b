"""Conversion of an adapter to GGUF and back, in the layout of llama.cpp's converter.

Used by the export child process; needs the package `gguf`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType, quants
from safetensors.torch import load_file

from registry.adapter_files.served_config import CONFIG
from registry.adapter_files.tensor_names import PREFIX, WEIGHTS

FILE = "adapter.gguf"
TYPES = {"fp32": GGMLQuantizationType.F32, "bf16": GGMLQuantizationType.BF16}
# Model type -> architecture, and whether its queries and keys are stored with the halves of each head interleaved.
ARCHITECTURES = {
    "llama": (gguf.MODEL_ARCH.LLAMA, True),
    "mistral": (gguf.MODEL_ARCH.LLAMA, True),
    "qwen2": (gguf.MODEL_ARCH.QWEN2, False),
    "qwen3": (gguf.MODEL_ARCH.QWEN3, False),
}

Tensors = dict[str, torch.Tensor]


class Layout:
    """Tensor names and row order that GGUF uses for adapters of one base model.

    Raises ValueError for a model type that is not in ARCHITECTURES.
    """

    def __init__(self, base: Path) -> None:
        self.config: dict[str, Any] = json.loads((base / "config.json").read_bytes())
        kind = self.config.get("model_type", "")
        if kind not in ARCHITECTURES:
            raise ValueError(f"GGUF is written for {', '.join(ARCHITECTURES)}; this model is of type {kind!r}.")
        self.architecture, self.is_interleaved = ARCHITECTURES[kind]
        self.names = gguf.get_tensor_name_map(self.architecture, self.config["num_hidden_layers"])

    def name(self, tensor: str) -> str:
        """Return the GGUF name of a PEFT tensor.

        Example: `base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight` is `blk.0.attn_q.weight.lora_a`.
        """
        module, _, side = tensor.removesuffix(".weight").removeprefix(PREFIX).rpartition(".")
        return f"{self.names.get_name(module)}.weight.{side.lower()}"

    def heads(self, tensor: str) -> int:
        """Return the number of heads whose rows are interleaved in this tensor, or 0 if its rows keep their order."""
        if not self.is_interleaved or ".lora_B." not in tensor:
            return 0
        heads = int(self.config["num_attention_heads"])
        if ".q_proj." in tensor:
            return heads
        return int(self.config.get("num_key_value_heads") or heads) if ".k_proj." in tensor else 0


def interleaved(rows: np.ndarray, heads: int) -> np.ndarray:
    """Return an (out, rank) matrix with the two halves of each head's rows interleaved, as llama.cpp rotates them."""
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(rows.shape)


def in_halves(rows: np.ndarray, heads: int) -> np.ndarray:
    """Return an (out, rank) matrix with each head's interleaved rows as two halves again, undoing `interleaved`."""
    return rows.reshape(heads, rows.shape[0] // heads // 2, 2, -1).swapaxes(1, 2).reshape(rows.shape)


def write_gguf(portable: Path, base: Path, target: Path, dtype: str) -> None:
    """Write a portable adapter (one rank, scale 1) as the GGUF file `target`; `dtype` is `fp32` or `bf16`.

    llama.cpp scales each tensor by alpha / rank, so alpha is set to the rank. Raises ValueError for a model type that
    is not in ARCHITECTURES.
    """
    layout, rank = Layout(base), json.loads((portable / CONFIG).read_bytes())["r"]
    writer = gguf.GGUFWriter(target, gguf.MODEL_ARCH_NAMES[layout.architecture])
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, rank)
    for name, tensor in sorted(load_file(portable / WEIGHTS).items()):
        values = tensor.float().numpy()
        if heads := layout.heads(name):
            values = interleaved(values, heads)
        writer.add_tensor(layout.name(name), quants.quantize(values, TYPES[dtype]), raw_dtype=TYPES[dtype])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read_gguf(path: Path, base: Path, names: list[str]) -> Tensors:
    """Return the tensors with these PEFT names from a GGUF file, in PEFT's order of rows.

    Raises KeyError if one is missing.
    """
    layout = Layout(base)
    tensors = {
        tensor.name: quants.dequantize(tensor.data, tensor.tensor_type) for tensor in gguf.GGUFReader(path).tensors
    }
    return {name: torch.from_numpy(restored(tensors[layout.name(name)], layout.heads(name))) for name in names}


def restored(values: np.ndarray, heads: int) -> np.ndarray:
    """Return the matrix in PEFT's order of rows; `heads` 0 means that its rows were not interleaved."""
    return np.array(in_halves(values, heads) if heads else values)
