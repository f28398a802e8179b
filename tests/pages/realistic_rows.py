"""Rows of the realistic world that stand alone: a base model, evaluations, metrics and plans."""

from __future__ import annotations

import hashlib
import random
import re
from typing import Any

from registry.models import AdapterVersion, BaseModel
from registry.models.evaluation import VersionEvaluation
from training.models import RunMetric, TrainingRun

CONFIG = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536,
          "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152,
          "tie_word_embeddings": True}  # fmt: skip
SHAPES = {"q_proj": [576, 576], "k_proj": [192, 576], "v_proj": [192, 576], "o_proj": [576, 576],
          "gate_proj": [1536, 576], "up_proj": [1536, 576], "down_proj": [576, 1536]}  # fmt: skip
KINDS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def base_model() -> BaseModel:
    digest = hashlib.sha256(b"SmolLM2-135M").hexdigest()
    size = {"parameters": 134_515_008, "size_bytes": 269_060_552}
    return BaseModel.objects.create(slug="smollm2-135m", source="HuggingFaceTB/SmolLM2-135M", status="ready",
                                    digest=digest, config=CONFIG, **size)  # fmt: skip


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
    values = {"loss": loss, "learning_rate": 0.0004 * (1 - step / 400), "grad_norm": dice.uniform(0.4, 0.9),
              "tokens_per_second": dice.uniform(2000, 2300), "memory_bytes": 3.1e9}  # fmt: skip
    return RunMetric(run=run, step=step, values=values)


def planned_module(name: str, rank: int, dice: random.Random) -> dict[str, Any]:
    """What earns a high rank is worth much, and its worth falls slowly over the ranks."""
    worth = rank / 32 * dice.uniform(0.75, 1.35)
    spectrum = [round(worth * (0.72 + rank / 160) ** place, 6) for place in range(16)]
    return {"name": name, "shape": SHAPES[name.rsplit(".", 1)[-1]], "sensitivity": worth, "divergence": None,
            "score": worth, "weight": 1.0, "spectrum": spectrum, "rank": rank}  # fmt: skip


def plan(ranks: dict[str, int], dice: random.Random) -> dict[str, Any]:
    """A plan as an analysis leaves it, for these ranks."""
    modules = [planned_module(name, rank, dice) for name, rank in ranks.items()]
    parameters = sum(rank * 2112 for rank in ranks.values())
    return {
        "modules": modules, "rank_pattern": {}, "alpha_pattern": {}, "r": 16, "lora_alpha": 32,
        "target_modules": list(KINDS), "scale": 2.0, "parameters": parameters,
        "budget": {"kind": "uniform_rank", "value": 16, "parameters": parameters},
        "settings": {"sensitivity": "probe", "divergence": "none", "objective": "concave", "direction": "base_target",
                     "init": "gradient", "kinds": "mlp", "power": 1.0, "rank_min": 0},
        "serving": {"max_lora_rank": 32, "slot_bytes": 9_732_096}, "greedy_gap": 0.0, "start_values": None,
        "learning_rate": 0.0004, "probes": [{"rate": 0.0002, "loss": 2.5}, {"rate": 0.0004, "loss": 2.1}],
        "stability": 0.91, "verdict": "follow_plan", "verdict_text": "Two halves of the sample rank the modules alike.",
        "preset": "default", "rank_min": 0, "rank_max": 32, "quantum": 4, "sequences": 48, "divergence_used": False,
        "seconds": 42.0,
    }  # fmt: skip
