"""The GGUF export is laid out as llama.cpp's converter lays it out, and holds PEFT's updates."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import quants

from registry.exports import gguf as gguf_export
from registry.exports.export_process import export_checked
from registry.exports.peft_equivalence import ExportMismatch, updates
from tests.builders.adapters import UNEVEN_ADAPTERS

HEADS = {"q": "num_attention_heads", "k": "num_key_value_heads"}


def permuted(weights: torch.Tensor, heads: int) -> torch.Tensor:
    """LlamaModel.permute of llama.cpp's convert_hf_to_gguf.py, on the whole update."""
    return (
        weights.reshape(heads, 2, weights.shape[0] // heads // 2, *weights.shape[1:])
        .swapaxes(1, 2)
        .reshape(weights.shape)
    )


@pytest.mark.parametrize("kind", UNEVEN_ADAPTERS)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_each_tensor_is_where_llama_cpp_looks(
    kind: str, dtype: str, make_adapter: Callable[..., Path], base_folder: Path, tmp_path: Path
) -> None:
    original = make_adapter(tmp_path / "original", 7, task_type="CAUSAL_LM", **UNEVEN_ADAPTERS[kind])
    export_checked(original, base_folder, tmp_path / "out", "gguf", dtype)
    reader: Any = gguf.GGUFReader(tmp_path / "out/adapter.gguf")
    fields = {
        name: reader.fields[name].contents()
        for name in ("general.type", "general.architecture", "adapter.type", "adapter.lora.alpha")
    }
    tensors = {tensor.name: quants.dequantize(tensor.data, tensor.tensor_type) for tensor in reader.tensors}
    rank = next(iter(tensors.values())).shape[0]
    assert fields == {
        "general.type": "adapter",
        "general.architecture": "llama",
        "adapter.type": "lora",
        "adapter.lora.alpha": rank,
    }
    layout = gguf_export.Layout(base_folder)
    expected = updates(original, base_folder)
    assert len(tensors) == 2 * len(expected)
    for module, update in expected.items():
        name = layout.names.get_name(module.removeprefix(gguf_export.PREFIX))
        a, b = (torch.tensor(np.array(tensors[f"{name}.weight.lora_{side}"])) for side in "ab")
        inputs = torch.randn(update.shape[0], a.shape[1], generator=torch.Generator().manual_seed(0))
        wanted = update
        for side, field in HEADS.items():
            if module.endswith(f".{side}_proj"):
                wanted = permuted(update.T, layout.config[field]).T
        error = float((inputs @ a.T @ b.T - wanted).norm() / wanted.norm())
        assert error < {"fp32": 1e-5, "bf16": 2e-2}[dtype], module


def test_a_file_with_rows_in_another_order_is_not_offered(
    make_adapter: Callable[..., Path], base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = make_adapter(tmp_path / "original", 7, task_type="CAUSAL_LM", **UNEVEN_ADAPTERS["unequal alphas"])
    monkeypatch.setattr(gguf_export, "interleaved", lambda rows, heads: rows)
    with pytest.raises(ExportMismatch, match=r"q_proj|k_proj"):
        export_checked(original, base_folder, tmp_path / "out", "gguf", "fp32")
