"""Versions side by side: what they say, how large they are, and how far their updates are apart."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from django.conf import settings

from adapterhub.core.errors import Invalid
from registry.exports.service import fetched, run_child
from registry.models import AdapterVersion, VersionEvaluation

FACTS = ("method", "base_digest", "tokenizer_digest", "template_digest", "max_rank", "parameters", "size_bytes")


def other_version(version: AdapterVersion, number: Any) -> AdapterVersion:
    """Another version of the same adapter. Raises Invalid."""
    found = version.adapter.versions.filter(number=int(number)).first() if str(number).isdecimal() else None
    if found is None:
        raise Invalid(f"{version.adapter} has no version {str(number)[:20]!r}: name one by its number.", field="to")
    return found


def compare(one: AdapterVersion, other: AdapterVersion) -> dict[str, Any]:
    """What differs; `updates` has a row for each module. Raises Unavailable when the files cannot be read."""
    return {
        "from": one.served_name,
        "to": other.served_name,
        "facts": changes({name: getattr(one, name) for name in FACTS}, {name: getattr(other, name) for name in FACTS}),
        "config": changes(one.config, other.config),
        "metrics": changes(figures(one.metrics), figures(other.metrics)),
        "ranks": changes(one.ranks, other.ranks),
        "updates": updates(one, other),
    }


def changes(one: dict[str, Any], other: dict[str, Any]) -> list[dict[str, Any]]:
    """Every name of either side with both values, in the order of names, and whether they are equal."""
    return [
        {"name": name, "from": one.get(name), "to": other.get(name), "same": one.get(name) == other.get(name)}
        for name in sorted(one.keys() | other.keys())
    ]


def table(versions: Sequence[AdapterVersion]) -> dict[str, list[dict[str, Any]]]:
    """Facts, metrics, configuration and ranks of two versions or more: a row a name, a value a version."""
    measured = measurements(versions)
    return {
        "facts": beside([{name: getattr(version, name) for name in FACTS} for version in versions]),
        "metrics": beside([figures(version.metrics) | measured.get(version.pk, {}) for version in versions]),
        "configuration": beside([version.config for version in versions]),
        "ranks": beside([version.ranks for version in versions]),
    }


def beside(sides: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every name of any side, those that differ first."""
    names = sorted(set().union(*sides))
    rows = [{"name": name, "values": [side.get(name) for side in sides]} for name in names]
    for row in rows:
        row["same"] = all(value == row["values"][0] for value in row["values"])
    return sorted(rows, key=lambda row: row["same"])


def measurements(versions: Sequence[AdapterVersion]) -> dict[int, dict[str, Any]]:
    """Version's key -> the figures of its latest evaluation."""
    rows = VersionEvaluation.objects.filter(version__in=versions).order_by("created_at")
    arms = {row.version_id: row.metrics.get("arms", {}).get("version", {}) for row in rows}
    return {key: {f"evaluated {name}": value for name, value in figures(arm).items()} for key, arm in arms.items()}


def figures(metrics: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in metrics.items() if isinstance(value, int | float | str)}


def updates(one: AdapterVersion, other: AdapterVersion) -> list[dict[str, Any]]:
    """Norms and cosine distance of the weight updates, module by module, from a child."""
    settings.WORK_DIR.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(dir=settings.WORK_DIR) as scratch:
        folder = Path(scratch)
        places = [str(fetched(version, folder / name)) for version, name in ((one, "from"), (other, "to"))]
        run_child("comparison", ["registry.evidence.comparison_process", *places, str(folder / "out.json")], folder)
        rows: list[dict[str, Any]] = json.loads((folder / "out.json").read_bytes())
    return rows
