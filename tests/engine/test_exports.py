"""The portable export computes what PEFT computes from the original, and the engine agrees."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from adapterhub.jobs.child import REFUSED
from registry.adapter_files.manifest import Manifest
from registry.adapter_files.served_config import write_config
from registry.exports import export_process
from registry.exports.export_process import export, export_checked
from registry.exports.peft_equivalence import ExportMismatch, check_export
from registry.models.base_model import linear_shapes
from serving_client.engine.engine import Engine
from tests.builders.adapters import UNEVEN_ADAPTERS
from training.tars.__main__ import main as tars

PROMPT = list(b"The bank shall report")
COUNT = 16


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory, make_adapter: Callable[..., Path]) -> dict[str, Any]:
    """Name -> (original, portable export in fp32)."""
    root = tmp_path_factory.mktemp("exports")
    pair_of = {}
    for seed, (name, fields) in enumerate(UNEVEN_ADAPTERS.items()):
        original = make_adapter(root / f"{seed}", seed, task_type="CAUSAL_LM", **fields)
        export(original, root / f"{seed}-portable", "portable", "fp32")
        pair_of[name] = (original, root / f"{seed}-portable")
    return pair_of


def logits(base_folder: Path, adapter: Path | None) -> torch.Tensor:
    model: Any = LlamaForCausalLM.from_pretrained(base_folder)
    if adapter:
        model = PeftModel.from_pretrained(model, adapter)
    with torch.inference_mode():
        return model(input_ids=torch.tensor([PROMPT])).logits


@pytest.mark.parametrize("kind", UNEVEN_ADAPTERS)
def test_peft_gives_equal_logits(kind: str, pairs: dict[str, Any], base_folder: Path) -> None:
    original, exported = pairs[kind]
    expected = logits(base_folder, original)
    torch.testing.assert_close(logits(base_folder, exported), expected, rtol=1e-4, atol=1e-4)
    assert (expected - logits(base_folder, None)).abs().max() > 0.1, "the adapter must matter to prove anything"


@pytest.mark.parametrize("kind", UNEVEN_ADAPTERS)
def test_every_module_has_one_rank_and_scale_one(kind: str, pairs: dict[str, Any]) -> None:
    original, exported = pairs[kind]
    config = json.loads((exported / "adapter_config.json").read_bytes())
    ranks = {t.shape[0] for name, t in load_file(original / "adapter_model.safetensors").items() if "lora_A" in name}
    padded = {t.shape[0] for name, t in load_file(exported / "adapter_model.safetensors").items() if "lora_A" in name}
    assert padded == {max(ranks)} == {config["r"]} == {config["lora_alpha"]}
    assert config["rank_pattern"] == config["alpha_pattern"] == {}
    assert not config["use_rslora"]


async def test_the_engine_gives_pefts_greedy_tokens(
    pairs: dict[str, Any],
    make_engine: Callable[..., Engine],
    serve: Callable[[Engine], Any],
    peft_tokens: Callable[..., list[int]],
    greedy: Callable[..., Any],
) -> None:
    engine = make_engine(max_lora_rank=64)
    for kind, (_, exported) in pairs.items():
        engine.adapters.load(kind, str(exported))
    async with serve(engine):
        answers = {kind: await greedy(engine, kind, PROMPT, COUNT) for kind in pairs}
    assert answers == {kind: peft_tokens(PROMPT, COUNT, original) for kind, (original, _) in pairs.items()}


@pytest.mark.parametrize(("dtype", "stored"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_the_peft_export_changes_only_the_dtype(
    dtype: str, stored: torch.dtype, pairs: dict[str, Any], tmp_path: Path
) -> None:
    original, _ = pairs["unequal alphas"]
    export(original, tmp_path / "out", "peft", dtype)
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (original, tmp_path / "out"))
    assert {name: tensor.to(stored).tolist() for name, tensor in before.items()} == {
        name: tensor.tolist() for name, tensor in after.items()
    }
    assert {tensor.dtype for tensor in after.values()} == {stored}
    configs = [json.loads((folder / "adapter_config.json").read_bytes()) for folder in (original, tmp_path / "out")]
    assert configs[0] == configs[1]


@pytest.mark.parametrize("form", ["peft", "portable", "folded"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_an_export_is_compared_with_peft(
    form: str, dtype: str, pairs: dict[str, Any], base_folder: Path, tmp_path: Path
) -> None:
    for number, (original, _) in enumerate(pairs.values()):
        export_checked(original, base_folder, tmp_path / f"{number}", form, dtype)


@pytest.mark.parametrize("change", [{"lora_alpha": 63}, {"use_rslora": True}])
def test_an_export_with_another_scale_is_not_offered(
    change: dict[str, Any], pairs: dict[str, Any], base_folder: Path, tmp_path: Path
) -> None:
    original, _ = pairs["ranks 4 to 64"]
    export(original, tmp_path / "out", "portable", "fp32")
    config = tmp_path / "out/adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_bytes()) | change))
    with pytest.raises(ExportMismatch, match="differs from PEFT's by"):
        check_export(original, tmp_path / "out", base_folder, "fp32")


@pytest.mark.parametrize("kind", UNEVEN_ADAPTERS)
def test_a_merged_checkpoint_answers_as_peft(
    kind: str, pairs: dict[str, Any], base_folder: Path, tmp_path: Path
) -> None:
    original, _ = pairs[kind]
    export_checked(original, base_folder, tmp_path / "merged", "merged", "fp32")
    expected = logits(base_folder, original)
    torch.testing.assert_close(logits(tmp_path / "merged", None), expected, rtol=1e-4, atol=1e-4)
    names = {path.name for path in (tmp_path / "merged").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= names


@pytest.mark.parametrize("budget", ["uniform:4", "uniform:1"])
@pytest.mark.slow
def test_a_compressed_adapter_leaves_in_every_form(
    budget: str, make_adapter: Callable[..., Path], base_folder: Path, tmp_path: Path
) -> None:
    original = make_adapter(tmp_path / "original", r=8, lora_alpha=16, task_type="CAUSAL_LM")
    assert tars(["compress", "--adapter", str(original), "--budget", budget, "--out", str(tmp_path / "small")]) == 0
    manifest = Manifest.read(
        tmp_path / "small", linear_shapes(json.loads((base_folder / "config.json").read_text())), 2
    )
    assert len(manifest.ranks) < 14 or budget == "uniform:4", "the smaller one lacks modules in some layers"
    write_config(tmp_path / "small", manifest.config)
    for form in ("peft", "portable", "folded", "gguf", "merged"):
        (tmp_path / form).mkdir()
        export_checked(tmp_path / "small", base_folder, tmp_path / form / "out", form, "fp32")
    expected = logits(base_folder, tmp_path / "small")
    torch.testing.assert_close(logits(base_folder, tmp_path / "portable/out"), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits(tmp_path / "merged/out", None), expected, rtol=1e-4, atol=1e-4)


def test_what_can_never_be_exported_is_told_apart_from_a_failure(
    pairs: dict[str, Any], base_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    original, _ = pairs["a few modules"]
    other = json.loads((base_folder / "config.json").read_text()) | {"model_type": "gpt_neox"}
    (tmp_path / "base").mkdir()
    (tmp_path / "base/config.json").write_text(json.dumps(other))
    status = export_process.main("gguf", "fp32", str(original), str(tmp_path / "base"), str(tmp_path / "out"))
    assert (status, "gpt_neox" in capsys.readouterr().out) == (REFUSED, True)
