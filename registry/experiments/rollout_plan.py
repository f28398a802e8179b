"""Plan of a rollout: validation of steps, guardrails, checks and targeting, and templates of plans. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from jsonschema import Draft202012Validator, SchemaError
from jsonschema.validators import validator_for

from adapterhub.core.errors import Invalid
from adapterhub.core.regex_check import pattern_fault
from registry.experiments.guardrails import Guardrail, Kind
from registry.experiments.metrics import METRICS, UNSEEN_ALONE, is_measured
from serving_client.reports import hash_of

Steps = list[dict[str, Any]]
MINUTE, HOUR = 60, 3600
SHADOW: Steps = [{"weight": 0, "shadow": 10, "hold_s": 15 * MINUTE, "min_samples": 100}]
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
TEMPLATES["careful, after a shadow"] = SHADOW + TEMPLATES["careful"]
BY_HAND = "by hand"
MOST_LISTED = 1000
DEEPEST_SCHEMA, LARGEST_SCHEMA = 20, 1000
# Patterns and references could run without end, and each unevaluated* evaluates all below it once more.
NOT_IN_SCHEMAS = {
    "pattern",
    "patternProperties",
    "$ref",
    "$dynamicRef",
    "$recursiveRef",
    "unevaluatedItems",
    "unevaluatedProperties",
}
GUARDRAILS: list[dict[str, Any]] = [
    {"metric": "error_rate", "margin": 2},
    {"metric": "empty_rate", "margin": 5},
    {"metric": "latency", "margin": 1, "level": 0.95, "kind": "signal"},
]


def guardrail(raw: dict[str, Any]) -> Guardrail:
    """Parse one guardrail of a request: {metric, margin, kind, level}, of which the last two may be left out.

    `metric` is a key of METRICS. Raises Invalid that says what to correct.
    """
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
    """Return, without raising it, the error of an invalid guardrail."""
    return Invalid(f"guardrails: {detail}", field="guardrails", code="bad_guardrail")


def check(steps: Steps, guardrails: list[dict[str, Any]]) -> None:
    """Check steps and guardrails together.

    Raises Invalid if there is no step, for weights that do not rise, a shadow step whose weight is not 0, a last weight
    above 50 with guardrails, an invalid guardrail, and difference_rate without a shadow step.
    """
    weights = [step["weight"] for step in steps]
    if not steps or weights != sorted(set(weights)):
        raise Invalid("steps: each step's weight must be above the one before.", field="steps", code="bad_steps")
    if any(step.get("shadow") and step["weight"] for step in steps):
        raise Invalid(
            "steps: the weight of a shadow step must be 0, because nobody sees its answers.",
            field="steps",
            code="bad_steps",
        )
    if guardrails and weights[-1] > 50:
        raise Invalid(
            "steps: with guardrails the last weight is 50 or less, so that a control of equal size remains; "
            "promotion brings the rest.",
            field="steps",
            code="no_control",
        )
    for raw in guardrails:
        guardrail(raw)
    has_shadow = any(step.get("shadow") for step in steps)
    if not has_shadow and any(raw["metric"] in UNSEEN_ALONE for raw in guardrails):
        raise bad("difference_rate is measured only in shadow steps: add one.")


def require_end(steps: Steps, guardrails: list[dict[str, Any]]) -> None:
    """Check that the control loop can end the rollout by itself.

    A guardrail must be measured in the last step, or that step must need approval. Raises Invalid for a plan without
    guardrails, or if neither holds.
    """
    last = steps[-1]
    measured = [raw for raw in guardrails if is_measured(raw["metric"], unseen=bool(last.get("shadow")))]
    if guardrails and (measured or last.get("approval")):
        return
    missing = "none of its guardrails is measured in its last step" if guardrails else "it has no guardrail"
    raise Invalid(
        f"guardrails: the rollout would never end, since {missing}: only measurements promote a candidate. Declare "
        "one, such as error_rate with a margin of 1.",
        field="guardrails",
        code="never_ends",
    )


def check_answers(checks: dict[str, Any], guardrails: list[dict[str, Any]]) -> None:
    """Check the patterns, the schema and the judge of the checks on answers.

    Raises Invalid for a pattern or schema that a router could not use, and for a judge_score guardrail without a judge.
    """
    if "judge" not in checks and any(raw["metric"] == "judge_score" for raw in guardrails):
        raise bad("judge_score needs checks.judge: an instruction, and the percent of the answers to judge.")
    for name in ("refusal", "format"):
        if fault := pattern_fault(checks.get(name) or ""):
            raise bad_check(name, fault)
    if (schema := checks.get("schema")) is not None:
        require_schema(schema)


def require_judge(checks: dict[str, Any], *, has_judge: bool) -> None:
    """Check that a judge is configured if the checks ask for one. Raises Invalid if it is not."""
    if "judge" in checks and not has_judge:
        raise Invalid(
            "checks.judge: no judge is configured: an operator must set ADAPTERHUB_JUDGE_URL.",
            field="checks.judge",
            code="no_judge",
        )


def require_schema(schema: Any) -> None:
    """Check a JSON Schema.

    Raises Invalid if it is not one, is too large or too deep, or has keywords that could run without end.
    """
    # Only after this, since the check itself compiles the patterns and follows the schema to its depth.
    if forbidden := NOT_IN_SCHEMAS & set(keys(schema)):
        raise bad_check("schema", f"{', '.join(sorted(forbidden))} may not be used.")
    try:
        validator_for(schema, Draft202012Validator).check_schema(schema)
    except SchemaError as error:
        raise bad_check("schema", f"not a JSON Schema: {error.message}.") from None


def keys(schema: Any) -> Iterator[str]:
    """Yield every key of every object in a schema.

    Raises Invalid if the schema is not an object, too deep or too large; some keys may have been yielded before.
    """
    if not isinstance(schema, dict):
        raise bad_check("schema", "not a JSON Schema: give an object.")
    waiting, count = [(schema, 1)], 0
    while waiting:
        part, depth = waiting.pop()
        count += 1
        if depth > DEEPEST_SCHEMA or count > LARGEST_SCHEMA:
            raise bad_check("schema", f"at most {DEEPEST_SCHEMA} levels and {LARGEST_SCHEMA} values.")
        if isinstance(part, dict):
            yield from part
        inner = part.values() if isinstance(part, dict) else part if isinstance(part, list) else []
        waiting += [(value, depth + 1) for value in inner]


def bad_check(name: str, detail: str) -> Invalid:
    """Return, without raising it, the error of an invalid check of answers; `name` is its key in `checks`."""
    return Invalid(f"checks.{name}: {detail}", field=f"checks.{name}", code="bad_check")


def targets(targeting: dict[str, Any]) -> dict[str, Any]:
    """Convert a request's targeting to the form that routers read: {pinned: {sha256: arm}, holdout: percent}.

    Of {allow, deny, holdout} the units (users or sessions) in `allow` are pinned to the arm `candidate`, those in
    `deny` to `stable`. They are replaced by their sha256, since they may be names of people. Raises Invalid for a unit
    in both lists, or too many units.
    """
    allowed, denied = targeting.get("allow", []), targeting.get("deny", [])
    if twice := set(allowed) & set(denied):
        raise Invalid(
            f"targeting: {min(twice)!r} is in both lists: remove it from one.", field="targeting", code="bad_targeting"
        )
    if len(allowed) + len(denied) > MOST_LISTED:
        raise Invalid(f"targeting: list at most {MOST_LISTED} units.", field="targeting", code="bad_targeting")
    pinned = {hash_of(unit): "candidate" for unit in allowed} | {hash_of(unit): "stable" for unit in denied}
    return {"pinned": pinned, "holdout": targeting.get("holdout", 0.0)}
