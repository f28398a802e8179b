"""A plan as an analysis of a tiny model leaves it."""

from __future__ import annotations

PLAN = {
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
