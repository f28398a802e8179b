"""A plan as an analysis of a tiny model leaves it."""

from __future__ import annotations

PLAN = {
    "modules": [{"name": f"model.layers.{n}.mlp.up_proj", "shape": [32, 16], "sensitivity": 0.5, "divergence": 0.1,
                 "score": 0.05 * n, "rank": 4 * (n + 1)} for n in range(2)],
    "rank_pattern": {}, "alpha_pattern": {}, "r": 8, "lora_alpha": 16, "target_modules": ["up_proj"], "scale": 2,
    "parameters": 576, "budget": {"kind": "uniform_rank", "value": 8, "parameters": 768}, "stability": 0.9,
    "verdict": "follow_plan", "verdict_text": "Follow the plan.", "preset": "seed", "rank_min": 4, "rank_max": 8,
    "quantum": 4, "sequences": 16, "divergence_used": True, "seconds": 1.0,
}  # fmt: skip
