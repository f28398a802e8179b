"""An adapter as GGUF, in the layout of llama.cpp's own converter, and back. For the export child; needs `gguf`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType, quants
from safetensors.torch import load_file

from registry.adapter_files.manifest import WEIGHTS
from registry.adapter_files.served_config import CONFIG

FILE = "adapter.gguf"
PREFIX = "base_model.model."
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
    """Names and row orders of a base model's adapter in GGUF."""

    def __init__(self, base: Path) -> None:
        self.config: dict[str, Any] = json.loads((base / "config.json").read_bytes())
        kind = self.config.get("model_type", "")
        if kind not in ARCHITECTURES:
            raise ValueError(f"GGUF is written for {', '.join(ARCHITECTURES)}; this model is of type {kind!r}.")
        self.architecture, self.is_interleaved = ARCHITECTURES[kind]
        self.names = gguf.get_tensor_name_map(self.architecture, self.config["num_hidden_layers"])

    def name(self, tensor: str) -> str:
        """`blk.0.attn_q.weight.lora_a` of `base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight`."""
        module, _, side = tensor.removesuffix(".weight").removeprefix(PREFIX).rpartition(".")
        return f"{self.names.get_name(module)}.weight.{side.lower()}"

    def heads(self, tensor: str) -> int:
        """Heads whose rows are interleaved; 0 where rows stay as they are."""
        if not self.is_interleaved or ".lora_B." not in tensor:
            return 0
        heads = int(self.config["num_attention_heads"])
        if ".q_proj." in tensor:
            return heads
        return int(self.config.get("num_key_value_heads") or heads) if ".k_proj." in tensor else 0


def interleaved(rows: np.ndarray, heads: int) -> np.ndarray:
    """(out, rank): first and second half of each head take turns, as llama.cpp's rotary embedding wants them."""
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(rows.shape)


def in_halves(rows: np.ndarray, heads: int) -> np.ndarray:
    return rows.reshape(heads, rows.shape[0] // heads // 2, 2, -1).swapaxes(1, 2).reshape(rows.shape)


def write_gguf(portable: Path, base: Path, target: Path, dtype: str) -> None:
    """The adapter of a folder with one rank and scale 1: llama.cpp scales by alpha over each tensor's rank."""
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
    """PEFT's tensors of these names, as the file has them. Raises KeyError when it lacks one."""
    layout = Layout(base)
    found = {
        tensor.name: quants.dequantize(tensor.data, tensor.tensor_type) for tensor in gguf.GGUFReader(path).tensors
    }
    return {name: torch.from_numpy(restored(found[layout.name(name)], layout.heads(name))) for name in names}


def restored(values: np.ndarray, heads: int) -> np.ndarray:
    return np.array(in_halves(values, heads) if heads else values)
