"""Rows of the realistic world that stand alone: a base model, evaluations, metrics and plans."""

from __future__ import annotations

import hashlib
import json
import random
import re
from dataclasses import asdict
from functools import cache
from typing import Any

from django.db import connection

from registry.models import AdapterVersion, BaseModel
from registry.models.evaluation import VersionEvaluation
from training.models import RunMetric, TrainingRun
from training.tars import verdict
from training.tars.allocation import Bounds, cost, plan_fields
from training.tars.presets import PRESETS

LAYERS = 30
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
}
SHAPES = {
    "q_proj": [576, 576],
    "k_proj": [192, 576],
    "v_proj": [192, 576],
    "o_proj": [576, 576],
    "gate_proj": [1536, 576],
    "up_proj": [1536, 576],
    "down_proj": [576, 1536],
}
KINDS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def base_model() -> BaseModel:
    digest = hashlib.sha256(b"SmolLM2-135M").hexdigest()
    size = {"parameters": 134_515_008, "size_bytes": 269_060_552}
    return BaseModel.objects.create(
        slug="smollm2-135m", source="HuggingFaceTB/SmolLM2-135M", status="ready", digest=digest, config=CONFIG, **size
    )


def copy_versions(rows: list[AdapterVersion]) -> list[AdapterVersion]:
    """As `bulk_create` does, at a tenth of its cost: it would quote each row's JSON as a part of an array."""
    fields, table = AdapterVersion._meta.concrete_fields, AdapterVersion._meta.db_table
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT nextval(pg_get_serial_sequence(%s, 'id')) FROM generate_series(1, %s)", [table, len(rows)]
        )
        for row, (row.pk,) in zip(rows, cursor.fetchall(), strict=True):
            row._state.adding, row._state.db = False, connection.alias
        with cursor.copy(f"COPY {table} ({', '.join(field.column for field in fields)}) FROM STDIN") as copy:
            for row in rows:
                copy.write_row([stored(getattr(row, field.attname)) for field in fields])
    return rows


def stored(value: Any) -> Any:
    """The value as COPY writes it."""
    return json.dumps(value) if isinstance(value, dict) else value


def may_serve(version: AdapterVersion) -> bool:
    """A version trained on a 4-bit base serves only once it is measured on the 16-bit one."""
    return version.status == "ready" and version.method != "qlora"


def name_of(layer: int, kind: str) -> str:
    return f"model.layers.{layer}.{'mlp' if kind in KINDS[4:] else 'self_attn'}.{kind}"


def config_of(ranks: dict[str, int]) -> dict[str, Any]:
    patterns = {f"^{re.escape(name)}": rank for name, rank in ranks.items()}
    alphas = {name: 2 * rank for name, rank in patterns.items()}
    return {"peft_type": "LORA", "r": 16, "lora_alpha": 32, "rank_pattern": patterns, "alpha_pattern": alphas}


def evaluation(version: AdapterVersion, dice: random.Random) -> VersionEvaluation:
    base, loss = version.metrics["loss_before"], version.metrics["loss_after"]
    arms = {"version": arm(loss, dice), "base": arm(base, dice)}
    spread = {"mean": loss - base, "low": loss - base - 0.05, "high": loss - base + 0.05}
    metrics = {"arms": arms, "differences": {"base": spread}, "tokens": 18432}
    return VersionEvaluation(version=version, base_digest=version.base_digest, dataset_digest="d" * 64, metrics=metrics)


def arm(loss: float, dice: random.Random) -> dict[str, Any]:
    rates = {"exact_match": dice.uniform(0.3, 0.7), "token_f1": dice.uniform(0.6, 0.9), "forgetting": 0.02}
    return {"loss": loss, **rates, "answers": []}


def metric(run: TrainingRun, step: int, dice: random.Random) -> RunMetric:
    loss = 1.2 + 1.9 * 0.99**step + dice.uniform(-0.06, 0.06)
    values = {
        "loss": loss,
        "learning_rate": 0.0004 * (1 - step / 400),
        "grad_norm": dice.uniform(0.4, 0.9),
        "tokens_per_second": dice.uniform(2000, 2300),
        "memory_bytes": 3.1e9,
    }
    return RunMetric(run=run, step=step, values=values)


def value_of(layer: int, kind: str, dice: random.Random) -> float:
    """Later layers learn more of a task, and MLP modules more than attention."""
    return (1.6 if kind in KINDS[4:] else 0.7) * (0.4 + layer / 30) * dice.uniform(0.6, 1.4)


def planned_ranks(dice: random.Random) -> dict[str, int]:
    """As a plan of the default preset leaves them: attention has none."""
    return {
        name_of(layer, kind): max(4, min(32, 4 * round(4 * value_of(layer, kind, dice))))
        for layer in range(LAYERS)
        for kind in KINDS[4:]
    }


@cache
def uniform_ranks() -> dict[str, int]:
    return {name_of(layer, kind): 16 for layer in range(LAYERS) for kind in KINDS}


def parameters_of(ranks: dict[str, int]) -> int:
    return sum(rank * cost(SHAPES[name.rsplit(".", 1)[-1]]) for name, rank in ranks.items())


def measured_module(layer: int, kind: str, dice: random.Random) -> dict[str, Any]:
    """What a probe knows of a module: its worth, which falls over the ranks. The preset measures no attention."""
    module = {"name": name_of(layer, kind), "shape": SHAPES[kind], "divergence": None}
    if kind not in KINDS[4:]:
        return {**module, "sensitivity": None, "score": 0.0, "weight": 0.0, "spectrum": []}
    value = value_of(layer, kind, dice)
    spectrum = [round(value * 0.93**place, 6) for place in range(32)]
    return {**module, "sensitivity": value, "score": value, "weight": 1.0, "spectrum": spectrum}


def plan(dice: random.Random) -> dict[str, Any]:
    """A plan as an analysis leaves it: the signals are made up, the ranks and the verdict follow from them."""
    modules = [measured_module(layer, kind, dice) for layer in range(LAYERS) for kind in KINDS]
    settings, bounds = PRESETS["default"], Bounds(rank_min=0, rank_max=32, quantum=4)
    fields = plan_fields(modules, settings, "uniform_rank", 16, bounds, 2.0)
    verdict_code, text = verdict.of(fields["modules"], 0.91, 48, settings)
    return {
        **fields,
        **asdict(bounds),
        "settings": asdict(settings),
        "scale": 2.0,
        "start_values": None,
        "learning_rate": 0.004,
        "probes": [{"rate": 0.002, "loss": 2.5}, {"rate": 0.004, "loss": 2.1}],
        "stability": 0.91,
        "verdict": verdict_code,
        "verdict_text": text,
        "preset": "default",
        "sequences": 48,
        "divergence_used": False,
        "seconds": 42.0,
    }
