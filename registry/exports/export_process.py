"""Child process that writes an export and checks it against PEFT; it needs torch.

python -m registry.exports.export_process peft|portable|folded|merged|gguf fp32|bf16 SOURCE BASE TARGET
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from adapterhub.core.errors import DomainError
from adapterhub.jobs.child import REFUSED
from registry.adapter_files.manifest import read_config, scale_of
from registry.adapter_files.served_config import CONFIG, anchored
from registry.adapter_files.tensor_names import PREFIX, WEIGHTS
from registry.exports.peft_equivalence import check_export, check_merged, logits_of

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
COPIED_FIELDS = ("base_model_name_or_path", "task_type", "revision")

Tensors = dict[str, torch.Tensor]


def export(source: Path, target: Path, form: str, dtype: str) -> None:
    """Write the adapter of the folder `source` to the new folder `target`; `form` is `peft`, `portable` or `folded`.

    `peft` keeps ranks and scales; the others are the functions of these names. `dtype` is `fp32` or `bf16`.
    """
    config, tensors = read_config(source / CONFIG), load_file(source / WEIGHTS)
    if form in REWRITES:
        config, tensors = REWRITES[form](config, tensors)
    target.mkdir(parents=True)
    stored = {name: tensor.to(DTYPES[dtype]).contiguous() for name, tensor in tensors.items()}
    save_file(stored, target / WEIGHTS, metadata={"format": "pt"})
    (target / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def export_checked(source: Path, base: Path, target: Path, form: str, dtype: str) -> None:
    """Write an export of the adapter `source` of the model `base`, and compare it with PEFT; `target` is a new folder.

    `form` is `peft`, `portable`, `folded`, `merged` or `gguf`, and `dtype` `fp32` or `bf16`. Raises ExportMismatch if
    it would answer differently, and ValueError for a model that GGUF is not written for.
    """
    if form == "merged":
        merge(source, base, target, dtype)
    elif form == "gguf":
        to_gguf(source, base, target, dtype)
    else:
        export(source, target, form, dtype)
        check_export(source, target, base, dtype)


def to_gguf(source: Path, base: Path, target: Path, dtype: str) -> None:
    """Write one GGUF file into the new folder `target`, read it back and compare it with PEFT's updates.

    Two intermediate folders are left beside `target`. Raises ExportMismatch if the file's updates differ from PEFT's.
    """
    from registry.exports.gguf import FILE, read_gguf, write_gguf

    portable, again = target.with_name("portable"), target.with_name("again")
    export(source, portable, "portable", "fp32")
    target.mkdir(parents=True)
    write_gguf(portable, base, target / FILE, dtype)
    again.mkdir()
    names = list(load_file(portable / WEIGHTS))
    save_file(read_gguf(target / FILE, base, names), again / WEIGHTS, metadata={"format": "pt"})
    shutil.copyfile(portable / CONFIG, again / CONFIG)
    check_export(source, again, base, dtype)


def merge(source: Path, base: Path, target: Path, dtype: str) -> None:
    """Write the base model with the adapter merged into its weights to `target`, and the base's tokenizer beside it.

    Raises ExportMismatch if the merged model's logits differ from PEFT's.
    """
    whole: Any = AutoModelForCausalLM.from_pretrained(base, dtype=DTYPES[dtype])
    adapted: Any = PeftModel.from_pretrained(whole, str(source)).eval()
    expected = logits_of(adapted)
    merged = adapted.merge_and_unload(safe_merge=True)
    check_merged(expected, logits_of(merged), dtype)
    merged.save_pretrained(target)
    for name in TOKENIZER:
        if (base / name).exists():
            shutil.copyfile(base / name, target / name)


def folded(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    """Return (configuration, tensors) with each module's scale s folded into its B, at an unchanged rank.

    s * B @ A = (s * B) @ A, so the scale is 1 everywhere; the tensors are float32.
    """
    scaled, ranks = {}, {}
    for module in modules_of(tensors):
        a, b = (tensors[f"{module}.lora_{side}.weight"].float() for side in "AB")
        ranks[module.removeprefix(PREFIX)] = a.shape[0]
        scaled[f"{module}.lora_A.weight"] = a
        scaled[f"{module}.lora_B.weight"] = b * scale_of(config, module.removeprefix(PREFIX), a.shape[0])
    highest = max(ranks.values())
    pattern = anchored({module: rank for module, rank in ranks.items() if rank != highest})
    plain = plain_config(config, highest)
    return {**plain, "rank_pattern": pattern, "alpha_pattern": pattern}, scaled


def portable(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    """Return (configuration, tensors) with one rank and scale 1, for engines that ignore the patterns and rsLoRA.

    s * B @ A = (s * B | 0) @ (A | 0): each scale is multiplied into B, and zeros pad both to the highest rank.
    """
    plain, scaled = folded(config, tensors)
    for module in modules_of(tensors):
        a, b = (f"{module}.lora_{side}.weight" for side in "AB")
        missing = plain["r"] - scaled[a].shape[0]
        scaled[a] = torch.nn.functional.pad(scaled[a], (0, 0, 0, missing))
        scaled[b] = torch.nn.functional.pad(scaled[b], (0, missing))
    return {**plain, "rank_pattern": {}, "alpha_pattern": {}}, scaled


def modules_of(tensors: Tensors) -> list[str]:
    """Return the names of the adapted modules, sorted, with PEFT's prefix."""
    return sorted({name.rsplit(".lora_", 1)[0] for name in tensors})


def plain_config(config: dict[str, Any], rank: int) -> dict[str, Any]:
    """Return a configuration that every engine interprets alike: this rank, alpha = r, and the modules of `config`."""
    return {
        **{key: config[key] for key in COPIED_FIELDS if config.get(key)},
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "target_modules": config["target_modules"],
        "inference_mode": True,
    }


REWRITES = {"folded": folded, "portable": portable}


def main(form: str, dtype: str, source: str, base: str, target: str) -> int:
    """Write the export as `export_checked` does, and return 0.

    If these files can never be exported so, print the reason to stdout and return REFUSED.
    """
    try:
        export_checked(Path(source), Path(base), Path(target), form, dtype)
    except (ValueError, DomainError) as error:
        sys.stdout.write(f"{error}\n")
        return REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
