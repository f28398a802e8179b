"""Adapters as PEFT saves them: real safetensors files of a tiny Llama's shape."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from adapterhub.artifacts import FolderStore, S3Store

SHAPES = {
    "q_proj": (16, 16),
    "k_proj": (8, 16),
    "v_proj": (8, 16),
    "o_proj": (16, 16),
    "gate_proj": (32, 16),
    "up_proj": (32, 16),
    "down_proj": (16, 32),
}
LAYERS = 2
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 40,
}
_EIGHT = {"r": 8, "lora_alpha": 16}
# Name -> what PEFT is told: adapters whose modules differ in rank or alpha, so that an export has something to fold.
UNEVEN_ADAPTERS: dict[str, dict[str, Any]] = {
    "ranks 4 to 64": {
        **_EIGHT,
        "rank_pattern": {"q_proj": 4, r"^model\.layers\.1\.mlp\.down_proj": 64, "mlp.up_proj": 12, "v_proj": 32},
    },
    "unequal alphas": {
        **_EIGHT,
        "rank_pattern": {"o_proj": 16},
        "alpha_pattern": {"q_proj": 4, "o_proj": 48, r"^model\.layers\.0\.mlp\.gate_proj": 7},
    },
    "rsLoRA of mixed ranks": {"r": 16, "lora_alpha": 8, "use_rslora": True, "rank_pattern": {"k_proj": 5}},
    "a few modules": {"r": 6, "lora_alpha": 12, "target_modules": ["gate_proj", "down_proj"]},
    "kinds in some layers": {
        "r": 6,
        "lora_alpha": 12,
        "target_modules": [
            "model.layers.0.self_attn.q_proj",
            "model.layers.1.mlp.down_proj",
            "layers.1.self_attn.k_proj",
        ],
        "rank_pattern": {"down_proj": 3},
    },
}


def module_name(layer: int, kind: str) -> str:
    part = "mlp" if kind in ("gate_proj", "up_proj", "down_proj") else "self_attn"
    return f"model.layers.{layer}.{part}.{kind}"


def write_adapter(folder: Path, *, rank: int = 4, seed: int = 0, **config: Any) -> Path:
    """A PEFT folder with one rank everywhere."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    tensors = {}
    for layer in range(LAYERS):
        for kind, (out, width) in SHAPES.items():
            name = f"base_model.model.{module_name(layer, kind)}"
            tensors[f"{name}.lora_A.weight"] = random.normal(size=(rank, width)).astype(np.float32)
            tensors[f"{name}.lora_B.weight"] = random.normal(size=(out, rank)).astype(np.float32)
    save_file(tensors, folder / "adapter_model.safetensors")
    fields = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": sorted(SHAPES), **config}
    (folder / "adapter_config.json").write_text(json.dumps(fields))
    return folder


def flip_a_byte(store: FolderStore | S3Store, digest: str) -> None:
    """Change the last byte of the stored weights."""
    if isinstance(store, FolderStore):
        weights = store.place(digest) / "adapter_model.safetensors"
        weights.chmod(0o644)
        weights.write_bytes(flipped(weights.read_bytes()))
    else:
        place = {"Bucket": store.bucket, "Key": store.key(digest, "adapter_model.safetensors")}
        store.client.put_object(**place, Body=flipped(store.client.get_object(**place)["Body"].read()))


def flipped(raw: bytes) -> bytes:
    return raw[:-1] + bytes([raw[-1] ^ 1])
