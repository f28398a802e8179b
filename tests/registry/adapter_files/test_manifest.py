"""Hostile and broken adapter folders: each is refused with the file or field to blame."""

from __future__ import annotations

import contextlib
import json
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig

from adapterhub.core.errors import Invalid
from registry.adapter_files.config_schema import FIELDS
from registry.adapter_files.manifest import Manifest, read_config, scale_of
from registry.adapter_files.safetensors_header import Unreadable, read_header
from tests.builders import LAYERS, SHAPES, module_name, write_adapter


def refused(folder: Path) -> Invalid:
    with pytest.raises(Invalid) as caught:
        Manifest.read(folder, SHAPES, LAYERS)
    return caught.value


def safetensors(path: Path, header: Any, body: bytes = b"") -> None:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + body)


def test_a_good_adapter_is_read(tmp_path: Path) -> None:
    manifest = Manifest.read(write_adapter(tmp_path, rank=4), SHAPES, LAYERS)
    assert manifest.max_rank == 4
    assert manifest.parameters == sum(4 * (out + width) for out, width in SHAPES.values()) * LAYERS
    assert manifest.scale == 2


@pytest.mark.threat("E6")
@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"peft_type": "IA3"}, "peft_type"),
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "bias"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"megatron_config": {"x": 1}}, "megatron_config"),
        ({"target_modules": "(.*)*x!"}, "target_modules"),
        ({"megatron_core": "os"}, "megatron_core"),
        ({"an_unknown_key": 1}, "an_unknown_key"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"rank_pattern": {"q_proj": -4}}, "rank_pattern"),
        ({"rank_pattern": {"(?=q)q_proj": 4}}, "rank_pattern"),
        ({"lora_alpha": True}, "lora_alpha"),
        ({"lora_alpha": float("inf")}, "lora_alpha"),
        ({"r": 0}, "r"),
        ({"r": "4"}, "r"),
        ({"r": 8}, "r"),
        ({"rank_pattern": {"q_proj": 8}}, "rank_pattern"),
        ({"lora_alpha": "many"}, "lora_alpha"),
        ({"alpha_pattern": {"q_proj": 64}}, "alpha_pattern"),
    ],
)
def test_a_configuration_that_not_every_engine_serves_is_refused(
    tmp_path: Path, changes: dict[str, Any], field: str
) -> None:
    assert refused(write_adapter(tmp_path, **changes)).field == f"adapter_config.json.{field}"


def test_every_field_that_peft_writes_is_known(tmp_path: Path) -> None:
    written = LoraConfig(r=4, lora_alpha=8, target_modules=sorted(SHAPES)).to_dict()
    written["target_modules"] = sorted(written["target_modules"])
    Manifest.read(write_adapter(tmp_path, **written), SHAPES, LAYERS)


@pytest.mark.threat("E8")
def test_a_third_file_is_refused(tmp_path: Path) -> None:
    write_adapter(tmp_path)
    (tmp_path / "tokenizer.py").write_text("print()")
    assert "tokenizer.py" in refused(tmp_path).detail


def test_a_pickle_in_disguise_is_refused(tmp_path: Path) -> None:
    write_adapter(tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"\x80\x04\x95" + b"cos\nsystem\n" * 20)
    assert refused(tmp_path).field == "adapter_model.safetensors"


TENSOR = f"base_model.model.{module_name(0, 'q_proj')}.lora_A.weight"


@pytest.mark.parametrize(
    ("header", "body"),
    [
        ({TENSOR: {"dtype": "F32", "shape": [4, 16], "data_offsets": [0, 256]}}, b"\0" * 256),  # A without B
        ({"../../x": {"dtype": "F32", "shape": [4, 16], "data_offsets": [0, 256]}}, b"\0" * 256),
        ({TENSOR: {"dtype": "F32", "shape": [4, 16], "data_offsets": [0, 256]}}, b"\0" * 300),  # trailing bytes
        ({TENSOR: {"dtype": "F32", "shape": [4, 16], "data_offsets": [8, 264]}}, b"\0" * 264),  # hole
        ({TENSOR: {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 256]}}, b"\0" * 256),
        ({TENSOR: {"dtype": "I64", "shape": [4, 8], "data_offsets": [0, 256]}}, b"\0" * 256),
        ({TENSOR: {"shape": [4, 16]}}, b""),
        (b'{"a": 1, "a": 2}', b""),
        (b"[" * 100_000, b""),
        ([], b""),
        (0, b""),
        ({TENSOR: {"dtype": "F32", "shape": [4.0, 16], "data_offsets": [0, 256]}}, b"\0" * 256),
    ],
)
def test_a_broken_header_is_refused(tmp_path: Path, header: Any, body: bytes) -> None:
    write_adapter(tmp_path)
    safetensors(tmp_path / "adapter_model.safetensors", header, body)
    assert refused(tmp_path).code == "bad_adapter"


@pytest.mark.threat("E3")
def test_an_announced_giant_header_is_not_read(tmp_path: Path) -> None:
    write_adapter(tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(struct.pack("<Q", 2**60) + b"{}")
    assert "2 MB" in refused(tmp_path).detail


@settings(max_examples=300, deadline=1000)
@given(raw=st.binary(max_size=400))
def test_random_bytes_end_in_a_refusal_or_a_header(tmp_path_factory: pytest.TempPathFactory, raw: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "random.safetensors"
    path.write_bytes(struct.pack("<Q", len(raw) // 2) + raw)
    with contextlib.suppress(Unreadable):
        read_header(path)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=20), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.slow
@settings(max_examples=300, deadline=1000)
@given(fields=st.dictionaries(st.sampled_from(sorted(FIELDS)), VALUES, max_size=8))
def test_any_value_of_any_field_ends_in_a_refusal_or_a_scale(
    tmp_path_factory: pytest.TempPathFactory, fields: dict[str, Any]
) -> None:
    path = tmp_path_factory.getbasetemp() / "random.json"
    path.write_text(json.dumps({"r": 4, "lora_alpha": 8} | fields | {"peft_type": "LORA"}))
    with contextlib.suppress(Invalid):
        assert scale_of(read_config(path), module_name(0, "q_proj"), 4) > 0
