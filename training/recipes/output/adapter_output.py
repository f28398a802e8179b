"""Atomic writing of an adapter folder: exactly two files, with the same bytes for the same weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from training.recipes.run_file import Run


def save_adapter(model: Any, run: Run, weights: dict[str, Any] | None = None) -> None:
    """Save a PEFT LoRA model's adapter to OUTPUT/adapter.

    `weights`: the trained weights by name, gathered; None takes them from the model, which must not be sharded.
    """
    write_folder(
        run.output / "adapter",
        lambda part: model.save_pretrained(
            str(part), safe_serialization=True, save_embedding_layers=False, state_dict=weights
        ),
        {"target_modules": run.target_modules, "base_model_name_or_path": run.base_model_name},
    )


def write_folder(folder: Path, write: Callable[[Path], None], overriding: dict[str, Any]) -> None:
    """Let `write` fill a temporary folder with PEFT's files, then replace `folder` by it.

    `overriding`: fields to replace in adapter_config.json. PEFT's README and the name of a module to import are
    removed.
    """
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    write(part)
    (part / "README.md").unlink(missing_ok=True)
    config = json.loads((part / "adapter_config.json").read_bytes())
    config.pop("megatron_core", None)  # names a module to import: a published adapter must not name code
    (part / "adapter_model.safetensors").chmod(0o644)
    (part / "adapter_config.json").write_text(json.dumps(config | overriding, indent=2, sort_keys=True) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)


def trainable(model: Any) -> int:
    """Return the number of the model's parameters that are trained."""
    return sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
