"""Adapters of other trainers and tools: what is accepted computes the same update, what is not says why."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from registry.adapter_files.base_identity import BaseFacts
from registry.adapter_files.inspection import Inspection
from registry.adapter_files.manifest import Manifest, inspect_folder
from registry.adapter_files.reducible import is_reducible, modules_in
from registry.exports.peft_equivalence import SAMPLES, updates
from registry.models.base_model import linear_shapes
from tests.builders.adapters import CONFIG, LAYERS, SHAPES
from tests.cases import foreign_headers
from tests.cases import foreign_kinds as kinds

ACCEPTED, REFUSED = kinds.ACCEPTED | foreign_headers.ACCEPTED, kinds.REFUSED | foreign_headers.REFUSED
FACTS = BaseFacts(SHAPES, LAYERS, ("tiny",), "", vocabulary=40, hidden=16)
# Half a bfloat16's last bit, for the kinds that are saved with fewer bits.
TOLERANCE = {"A in float16, B in float32": 2e-3, "A in bfloat16, B in float16": 1e-2}


# What PEFT computes all the same, so that it can be kept and reduced.
REDUCIBLE = {
    "biases of LoRA",
    "bias = all",
    "norms",
    "whole linear modules",
    "modules_to_save that were not saved",
    "magnitudes in 16 bits",
}


def inspected(folder: Path) -> Inspection:
    return inspect_folder(folder, FACTS)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


def expected(only: str) -> dict[str, torch.Tensor]:
    """The plain adapter's update of the random inputs by which exports are compared."""
    outputs = {}
    for module, (a, b) in kinds.factors().items():
        if only in module:
            inputs = torch.randn(SAMPLES, a.shape[1], generator=torch.Generator().manual_seed(0))
            outputs[module] = kinds.SCALE * (inputs @ torch.from_numpy(a).T) @ torch.from_numpy(b).T
    return outputs


@pytest.mark.parametrize("name", ACCEPTED)
def test_what_is_accepted_computes_the_same_update(name: str, base: Path, tmp_path: Path) -> None:
    kind = ACCEPTED[name]
    served = kind.make(tmp_path / "sent")
    inspection = inspected(served)
    assert {finding.code for finding in inspection.findings} == kind.notices, inspection.findings
    assert all(finding.message.isprintable() for finding in inspection.findings)
    Manifest.of(served, inspection, LAYERS).write(served)
    computed = {module.removeprefix("base_model.model."): value for module, value in updates(served, base).items()}
    wanted = expected(kind.only)
    assert computed.keys() == wanted.keys()
    for module, value in wanted.items():
        assert float((computed[module] - value).norm() / value.norm()) <= TOLERANCE.get(name, 1e-6), module


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_says_why_and_what_to_do(name: str, tmp_path: Path) -> None:
    kind = REFUSED[name]
    inspection = inspected(kind.make(tmp_path / "sent"))
    assert is_reducible(inspection) == (name in REDUCIBLE)
    faults = [finding for finding in inspection.findings if finding.is_fault]
    matching = [finding for finding in faults if (finding.code, finding.field) == (kind.code, kind.field)]
    assert matching, faults
    assert any(kind.part in finding.message for finding in matching), matching


@pytest.mark.parametrize("name", kinds.QUANTISED)
def test_a_copy_with_fewer_bits_is_the_same_base_model(name: str, tmp_path: Path) -> None:
    findings = inspected(kinds.write(tmp_path / "sent", base_model_name_or_path=name)).findings
    assert [finding.code for finding in findings] == ["base_quantised"]


@pytest.mark.parametrize("name", kinds.OTHER)
def test_another_base_model_is_refused(name: str, tmp_path: Path) -> None:
    findings = inspected(kinds.write(tmp_path / "sent", base_model_name_or_path=name)).findings
    assert [finding.code for finding in findings] == ["other_base"]


def test_a_copy_in_a_folder_or_the_hubs_cache_is_the_same(tmp_path: Path) -> None:
    for number, name in enumerate(
        (
            "C:\\models\\tiny",
            "/root/.cache/huggingface/hub/models--acme--tiny/snapshots/0123456789abcdef0123456789abcdef01234567",
            "./tiny/",
            "s3://bucket/models/tiny",
            "TINY",
            "acme/tiny-bf16",
            "acme/tiny-hf",
        )
    ):
        findings = inspected(kinds.write(tmp_path / str(number), base_model_name_or_path=name)).findings
        assert {finding.code for finding in findings} <= {"base_revision"}, (name, findings)


MOE = {
    **{name: value for name, value in CONFIG.items() if name not in ("architectures", "model_type")},
    **{"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "head_dim": 4},
    **{"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8},
}


def test_the_attention_of_a_mixture_of_experts_is_adapted(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base/config.json").write_text(json.dumps(MOE))
    facts = BaseFacts(linear_shapes(MOE), LAYERS, ("tiny",))
    attention = kinds.named(only="self_attn")
    served = kinds.write(tmp_path / "sent", attention, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"])
    inspection = inspect_folder(served, facts)
    assert inspection.findings == ()
    Manifest.of(served, inspection, LAYERS).write(served)
    computed = {
        name.removeprefix("base_model.model."): value for name, value in updates(served, tmp_path / "base").items()
    }
    for module, value in expected("self_attn").items():
        assert float((computed[module] - value).norm() / value.norm()) <= 1e-6
    experts = {"base_model.model.model.layers.0.mlp.experts.3.up_proj.lora_A.weight": np.ones((4, 16), "f4")}
    for tensors, code in ((attention | experts, "experts"), (kinds.named(), "unknown_module")):
        findings = inspect_folder(kinds.write(tmp_path / code, tensors), facts).findings
        assert code in {finding.code for finding in findings if finding.is_fault}, findings


def test_peft_adapts_two_modules_where_none_are_named(base: Path, tmp_path: Path) -> None:
    tensors = {name: matrix for name, matrix in kinds.named().items() if ".q_proj." in name or ".v_proj." in name}
    served = kinds.write(tmp_path / "sent", tensors, target_modules=None)
    inspection = inspected(served)
    assert [finding.code for finding in inspection.findings] == ["targets_absent"]
    assert (inspection.expected, len(inspection.ranks)) == (4, 4)
    kinds.write(
        tmp_path / "v alone", {name: tensors[name] for name in tensors if ".v_proj." in name}, target_modules=None
    )
    assert "incomplete" in {finding.code for finding in inspected(tmp_path / "v alone").findings if finding.is_fault}


def test_a_modules_own_weight_makes_it_no_target() -> None:
    names = [f"base_model.model.{name}" for name in ("lm_head.base_layer.weight", f"{kinds.MODULES[0]}.lora_A.weight")]
    assert modules_in(names, FACTS) == {kinds.MODULES[0]}


def test_numbers_that_are_none_are_found(tmp_path: Path) -> None:
    from registry.adapter_files.finite_check import fault_in

    for number, value in enumerate((np.nan, np.inf, -np.inf)):
        tensors = kinds.named()
        tensors[next(iter(tensors))][1, 1] = value
        assert "NaN" in fault_in(kinds.write(tmp_path / str(number), tensors) / kinds.WEIGHTS)
