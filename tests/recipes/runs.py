"""Run files on a tiny model and what they report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.tiny_model import save_base_model, sentences, write_jsonl

ALL = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
PLAN = {
    "r": 8,
    "lora_alpha": 16,
    "rank_pattern": {r"^model\.layers\.0\.mlp\.up_proj": 3, r"^model\.layers\.1\.self_attn\.q_proj": 5},
    "alpha_pattern": {r"^model\.layers\.0\.mlp\.up_proj": 6, r"^model\.layers\.1\.self_attn\.q_proj": 10},
    "target_modules": ALL,
}


def write_inputs(folder: Path) -> dict[str, str]:
    return {
        "base_model": str(save_base_model(folder / "base")),
        "train": str(write_jsonl(folder / "train.jsonl", sentences(60))),
        "eval": str(write_jsonl(folder / "eval.jsonl", sentences(10, seed=5))),
    }


def write_run(folder: Path, inputs: dict[str, str], *, steps: int = 30, **changes: Any) -> Path:
    folder.mkdir(exist_ok=True)
    chosen = {
        "steps": steps,
        "batch_size": 4,
        "learning_rate": 0.05,
        "max_length": 32,
        "warmup_steps": 2,
        "checkpoint_steps": 5,
        "eval_tokens": 60,
        "threads": 1,
    }
    record = {
        **inputs,
        **PLAN,
        "base_model_name": "tiny",
        "output": str(folder / "output"),
        "events": str(folder / "events.jsonl"),
        **changes,
        "hyperparameters": {**chosen, **changes.get("hyperparameters", {})},
    }
    path = folder / "run.json"
    path.write_text(json.dumps(record))
    return path


def events_of(folder: Path, kind: str) -> list[dict[str, Any]]:
    path = folder / "events.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    events = [json.loads(line) for line in lines if line.endswith("\n")]
    return [event for event in events if event["kind"] == kind]


def losses(folder: Path) -> dict[int, float]:
    return {event["step"]: event["loss"] for event in events_of(folder, "metrics")}
