"""A plan as an analysis of a tiny model leaves it."""

from __future__ import annotations

from typing import Any

PLAN: dict[str, Any] = {
    "modules": [
        {
            "name": f"model.layers.{layer}.mlp.{kind}",
            "shape": shape,
            "sensitivity": 0.5,
            "divergence": None,
            "score": 0.5 + layer + shape[0] / 100,
            "weight": 1.0,
            "spectrum": [round((1 + layer) * 0.8**place, 6) for place in range(8)],
            "rank": 4,
        }
        for layer in range(2)
        for kind, shape in (("up_proj", [32, 16]), ("down_proj", [16, 32]))
    ],
    "rank_pattern": {},
    "alpha_pattern": {},
    "r": 4,
    "lora_alpha": 8,
    "target_modules": ["down_proj", "up_proj"],
    "scale": 2.0,
    "parameters": 768,
    "budget": {"kind": "uniform_rank", "value": 4, "parameters": 768},
    "settings": {
        "sensitivity": "probe",
        "divergence": "none",
        "objective": "concave",
        "direction": "base_target",
        "init": "gradient",
        "kinds": "mlp",
        "power": 1.0,
        "rank_min": 0,
    },
    "serving": {"max_lora_rank": 8, "slot_bytes": 3072},
    "greedy_gap": 0.0,
    "start_values": None,
    "learning_rate": 0.008,  # as plans before had it: twice the rate of the lowest loss
    "probes": [{"rate": 0.002, "loss": 2.5}, {"rate": 0.004, "loss": 2.1}],
    "stability": 0.9,
    "verdict": "follow_plan",
    "verdict_text": "The plan is no accident.",
    "preset": "default",
    "rank_min": 0,
    "rank_max": 8,
    "quantum": 2,
    "sequences": 16,
    "divergence_used": False,
    "seconds": 1.0,
}

CANDIDATE: dict[str, Any] = {
    "kinds": "mlp",
    "start_values": True,
    "share": 1.0,
    "rank": 6,
    "rate": 0.002,
    "parameters": 768,
}
RACED: dict[str, Any] = PLAN | {
    "preset": "race",
    "settings": {**PLAN["settings"], "sensitivity": "spectrum", "objective": "uniform"},
    "verdict": "no_difference",
    "verdict_text": "The race shows no difference.",
    "learning_rate": 0.003,
    "probes": [],
    "race": {
        "candidates": [
            {**CANDIDATE, "rounds": [{"steps": 20, "loss": 2.5}, {"steps": 40, "loss": 2.1}], "diverged": False},
            {**CANDIDATE, "rate": 0.004, "rounds": [{"steps": 20, "loss": 2.25}], "diverged": False},
            {
                **CANDIDATE,
                "kinds": "all",
                "start_values": False,
                "rank": 4,
                "rounds": [{"steps": 20, "loss": 2.75}, {"steps": 40, "loss": 2.125}],
                "diverged": False,
            },
            {
                **CANDIDATE,
                "kinds": "all",
                "start_values": False,
                "rank": 4,
                "rate": 0.004,
                "rounds": [{"steps": 20, "loss": None}],
                "diverged": True,
            },
        ],
        "winner": 0,
        "runner_up": 2,
        "chosen": 2,
        "difference": {"mean": -1.2, "low": -2.5, "high": 0.3},
        "no_difference": True,
        "rate": {
            "advised": 0.003,
            "run_steps": 600,
            "is_at_edge": True,
            "by_length": [{"steps": 20, "rate": 0.004}, {"steps": 40, "rate": 0.002}],
        },
        "tokens": {"trained": 4000, "scored": 2000, "allowed": 6000, "run": 40000},
        "rows": {"trained": 60, "scored": 12},
        "batch_size": 1,
        "base_loss": 3.5,
    },
}
