"""The rules for Prometheus, and which of them samples of metrics make true."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from prometheus_client.parser import text_string_to_metric_families

RULES = Path(__file__).parents[2] / "docs/prometheus/alerts.yml"
SAMPLE = re.compile(r"(?P<name>adapterhub_\w+)(?:\{(?P<label>\w+)=~?\"(?P<value>[^\"]+)\"\})?")
EXPRESSION = re.compile(rf"(?:increase\()?{SAMPLE.pattern}(?:\[\w+\]\))? (?P<operator>>|==) (?P<bound>\d+)")
Samples = list[tuple[str, dict[str, str], float]]


def written() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load(RULES.read_text())["groups"]
    return list(group["rules"])


def rules() -> dict[str, str]:
    return {rule["alert"]: rule["expr"] for rule in written()}


def samples(*scraped: str) -> Samples:
    """Return (name, labels, value) of the samples in these texts of metrics."""
    families = text_string_to_metric_families("".join(scraped))
    return [(sample.name, sample.labels, sample.value) for family in families for sample in family.samples]


def firing(known: Samples) -> set[str]:
    """Return the alerts whose condition one of the samples meets; how long it has to hold is left out."""
    return {alert for alert, expression in rules().items() if any(breaching(expression, known))}


def breaching(expression: str, known: Samples) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield (name, labels) of the samples that meet it.

    An increase counts from zero, which is where a counter begins.
    """
    parts = EXPRESSION.fullmatch(expression)
    assert parts, expression
    bound = float(parts["bound"])
    for name, labels, number in known:
        is_named = name == parts["name"] and re.fullmatch(parts["value"] or ".*", labels.get(parts["label"] or "", ""))
        if is_named and (number > bound if parts["operator"] == ">" else number == bound):
            yield name, labels
