"""What a rollout is told to do: its steps, its guardrails, and templates of both. Pure."""

from __future__ import annotations

from typing import Any

from adapterhub.api.errors import Invalid
from registry.guardrails import Guardrail, Kind
from registry.metrics import METRICS

Steps = list[dict[str, Any]]
MINUTE, HOUR = 60, 3600
TEMPLATES: dict[str, Steps] = {
    "careful": [
        {"weight": 1, "hold_s": 30 * MINUTE, "min_samples": 100},
        {"weight": 10, "hold_s": HOUR, "min_samples": 500},
        {"weight": 50, "hold_s": 4 * HOUR, "min_samples": 1500},
    ],
    "quick": [
        {"weight": 10, "hold_s": 5 * MINUTE, "min_samples": 200},
        {"weight": 50, "hold_s": 15 * MINUTE, "min_samples": 1000},
    ],
}
BY_HAND = "by hand"
GUARDRAILS: list[dict[str, Any]] = [
    {"metric": "error_rate", "margin": 2},
    {"metric": "empty_rate", "margin": 5},
    {"metric": "latency", "margin": 1, "level": 0.95, "kind": "signal"},
]


def guardrail(raw: dict[str, Any]) -> Guardrail:
    """One guardrail of the request. Raises Invalid, naming what to put right."""
    metric = METRICS.get(raw.get("metric", ""))
    if metric is None:
        raise bad(f"metric must be one of {', '.join(METRICS)}, not {raw.get('metric')!r}.")
    try:
        kind, margin = Kind(raw.get("kind", Kind.GUARDRAIL)), float(raw["margin"])
        return Guardrail(metric.label, margin, metric.unit, kind, raw.get("level"), metric.less_is_worse)
    except KeyError:
        raise bad(f"{raw['metric']} needs a margin, in {metric.unit}.") from None
    except (TypeError, ValueError) as error:
        raise bad(str(error)) from None


def bad(detail: str) -> Invalid:
    return Invalid(f"guardrails: {detail}", field="guardrails", code="bad_guardrail")


def check(steps: Steps, guardrails: list[dict[str, Any]]) -> None:
    """Raises Invalid for a plan that could not be carried out."""
    weights = [step["weight"] for step in steps]
    if not steps or weights != sorted(set(weights)):
        raise Invalid("steps: each step's weight must be above the one before.", field="steps", code="bad_steps")
    if guardrails and weights[-1] > 50:
        raise Invalid(
            "steps: with guardrails the last weight is 50 or less, so that a control of equal size remains; "
            "promotion brings the rest.", field="steps", code="no_control",
        )  # fmt: skip
    for raw in guardrails:
        guardrail(raw)
