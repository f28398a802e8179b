"""Adapters as other tools write them: each is served as PEFT computes it, or refused with its field and the way out."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from registry.adapter_files.base_copies import copy_faults
from registry.adapter_files.base_identity import BaseFacts
from registry.adapter_files.finite_check import fault_in
from registry.adapter_files.inspection import Inspection
from registry.adapter_files.manifest import Manifest, inspect_folder
from registry.adapter_files.tensor_names import WEIGHTS
from registry.exports.export_process import export
from registry.models import BaseModel
from tests.cases.make_cases import CASES, make
from tests.tiny_model import SMOLLM2, save_base_model

pytestmark = pytest.mark.filterwarnings("ignore")
IDS = torch.tensor([[5, 6, 7, 8, 9, 10, 11, 12]])
# Case -> the notices that it is accepted with.
ACCEPTED: dict[str, set[str]] = {
    "plain": set(),
    "fp16": set(),
    "bf16": set(),
    "no-task-type": set(),
    "unsloth-auto-mapping": set(),
    "unsloth-bnb-4bit": {"base_quantised"},
    "base-is-hf-cache": {"base_revision"},
    "base-null": {"base_unnamed"},
    "base-other-revision": {"base_revision"},
    "targets-regex": {"targets_pattern"},
    "old-alpaca-keys": {"fields_ignored"},
    "future-keys-off": {"fields_ignored"},
    "rslora": set(),
    "layers-to-transform": set(),
    "rank-pattern-unanchored": set(),
    "rank-pattern-regex": set(),
    "rank-pattern-never-matches": {"unused_keys"},
    "float-alpha": set(),
    "alpha-absent": set(),
    "r-absent": set(),
    "rank-256": set(),
    "keys-default": {"renamed"},
    "keys-no-prefix": {"renamed"},
    "keys-language-model": {"renamed"},
    "embeddings-unchanged": {"embedding_copies"},
    "fsdp-one-of-eight": set(),
}
# PEFT itself does not load these names: the same matrices under its own names are what it would compute.
WITHOUT_PEFT = {"keys-default", "keys-no-prefix", "keys-language-model"}
CONVERTED, MERGED = "adapterhub push", "register the result as a base"
# Case -> code, field, and a word of the way out.
REFUSED: dict[str, tuple[str, str, str]] = {
    "base-other-same-shape": ("other_base", "adapter_config.json.base_model_name_or_path", "confirm_base"),
    "alpha-null": ("bad_field", "adapter_config.json.lora_alpha", "alpha of the training"),
    "r-zero": ("bad_field", "adapter_config.json.r", ""),
    "rank-pattern-mixed-scale": ("unequal_scales", "adapter_config.json.alpha_pattern", "fold=true"),
    "mixed-scale-some-layers": ("unequal_scales", "adapter_config.json.alpha_pattern", "fold=true"),
    "keys-torchtune": ("torchtune", WEIGHTS, CONVERTED),
    "f64": ("dtype", WEIGHTS, CONVERTED),
    "fp8": ("dtype", WEIGHTS, CONVERTED),
    "tinker": ("output_embedding", WEIGHTS, MERGED),
    "lm-head-lora": ("output_embedding", WEIGHTS, MERGED),
    "modules-to-save-lm-head": ("bad_field", "adapter_config.json.modules_to_save", MERGED),
    "resized-vocabulary": ("resized_vocabulary", WEIGHTS, MERGED),
    "trainable-token-indices": ("bad_field", "adapter_config.json.trainable_token_indices", MERGED),
    "dora": ("bad_field", "adapter_config.json.use_dora", MERGED),
    "bias-lora-only": ("bad_field", "adapter_config.json.bias", "bias = none"),
    "pissa": ("bad_field", "adapter_config.json.init_lora_weights", "path_initial_model"),
    "fan-in-fan-out": ("bad_field", "adapter_config.json.fan_in_fan_out", "fan_in_fan_out = false"),
    "target-parameters": ("bad_field", "adapter_config.json.target_parameters", MERGED),
    "type-loha": ("other_method", "adapter_config.json.peft_type", MERGED),
    "type-ia3": ("other_method", "adapter_config.json.peft_type", MERGED),
    "type-vera": ("other_method", "adapter_config.json.peft_type", MERGED),
    "type-adalora": ("other_method", "adapter_config.json.peft_type", CONVERTED),
    "config-names-less": ("not_targeted", "adapter_config.json.target_modules", "target_modules"),
    "zero3-empty-tensors": ("empty_tensors", WEIGHTS, "stage3_gather"),
    "zero3-40-bytes": ("no_tensors", WEIGHTS, "gather"),
    "gguf-lora": ("no_safetensors", WEIGHTS, "PEFT's two files"),
}
NO_EFFECT = ("a-all-zero", "b-all-zero")
# They are more or other files than two: `adapterhub push` reads them.
OTHER_FILES = ("mlx", "bin-pickle", "sharded", "run-folder")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base_model(tmp_path_factory.mktemp("models") / "SmolLM2-135M-Instruct", 4, **SMOLLM2)


@pytest.fixture(scope="module")
def whole(base: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def case(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the folder of a case, made once."""
    root = tmp_path_factory.mktemp("cases")
    return lambda name: root / name if (root / name).exists() else make(name, base, root / name)


@pytest.fixture
def inspected(base: Path) -> Callable[..., Inspection]:
    """Inspect a folder as an adapter of the base model."""
    import json

    model = BaseModel(slug="smol", source=f"HuggingFaceTB/{base.name}", revision="")
    model.config = json.loads((base / "config.json").read_bytes())
    sizes = (model.config["vocab_size"], model.config["hidden_size"])
    facts = BaseFacts(model.linear_shapes(), model.layers, model.names, "", *sizes)
    return lambda folder, **options: inspect_folder(folder, facts, **options)


def logits(whole: Any, adapter: Path) -> torch.Tensor:
    adapted = PeftModel.from_pretrained(whole, str(adapter)).eval()
    try:
        with torch.inference_mode():
            return torch.as_tensor(adapted(input_ids=IDS).logits)
    finally:
        adapted.unload()


def test_every_case_has_an_outcome() -> None:
    assert set(CASES) == {*ACCEPTED, *REFUSED, *NO_EFFECT, *OTHER_FILES}


@pytest.mark.parametrize("name", ACCEPTED)
def test_what_is_accepted_answers_as_in_peft(
    name: str, case: Callable[[str], Path], inspected: Any, base: Path, whole: Any, tmp_path: Path
) -> None:
    served = Path(shutil.copytree(case(name), tmp_path / "served"))
    inspection = inspected(served)
    assert {finding.code for finding in inspection.findings} == ACCEPTED[name]
    assert copy_faults(served, inspection.copies, base) == []
    Manifest.of(served, inspection, 4).write(served)
    assert fault_in(served / WEIGHTS) == ""
    expected = logits(whole, case("plain" if name in WITHOUT_PEFT else name))
    assert torch.equal(logits(whole, served), expected)
    assert {tensor.rpartition(".lora_")[1] for tensor in load_file(served / WEIGHTS)} == {".lora_"}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_names_the_field_and_the_way_out(
    name: str, case: Callable[[str], Path], inspected: Any
) -> None:
    code, field, route = REFUSED[name]
    faults = [finding for finding in inspected(case(name)).findings if finding.is_fault]
    assert (code, field) in {(finding.code, finding.field) for finding in faults}, faults
    assert any(route in finding.route for finding in faults if finding.code == code), faults


@pytest.mark.parametrize("name", NO_EFFECT)
def test_an_adapter_without_effect_is_rejected(name: str, case: Callable[[str], Path]) -> None:
    assert "changes nothing" in fault_in(case(name) / WEIGHTS)


@pytest.mark.parametrize("name", ["rank-pattern-mixed-scale", "mixed-scale-some-layers"])
def test_different_scales_are_folded(
    name: str, case: Callable[[str], Path], inspected: Any, whole: Any, tmp_path: Path
) -> None:
    sent = Path(shutil.copytree(case(name), tmp_path / "sent"))
    Manifest.of(sent, inspected(sent, any_scale=True), 4).write(sent)
    export(sent, tmp_path / "folded", "folded", "fp32")
    assert inspected(tmp_path / "folded").findings[-1].code == "base_unnamed"
    expected = logits(whole, case(name))
    assert (logits(whole, tmp_path / "folded") - expected).norm() / expected.norm() < 1e-6


def test_a_changed_embedding_is_refused(
    case: Callable[[str], Path], inspected: Any, base: Path, tmp_path: Path
) -> None:
    from safetensors.torch import save_file

    sent = Path(shutil.copytree(case("embeddings-unchanged"), tmp_path / "sent"))
    tensors = load_file(sent / WEIGHTS)
    changed = next(name for name in tensors if "embed_tokens" in name)
    tensors[changed][3, 3] += 0.01
    save_file(tensors, sent / WEIGHTS)
    (fault,) = copy_faults(sent, inspected(sent).copies, base)
    assert (fault.code, changed in fault.cause) == ("embeddings_changed", True)


def test_a_copy_in_fewer_bits_is_a_copy(
    case: Callable[[str], Path], inspected: Any, base: Path, tmp_path: Path
) -> None:
    from safetensors.torch import save_file

    for dtype in (torch.bfloat16, torch.float16):
        sent = Path(shutil.copytree(case("embeddings-unchanged"), tmp_path / f"{dtype}"))
        save_file({name: tensor.to(dtype) for name, tensor in load_file(sent / WEIGHTS).items()}, sent / WEIGHTS)
        assert copy_faults(sent, inspected(sent).copies, base) == []
