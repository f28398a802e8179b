"""Comparison of versions: facts, configuration, metrics, ranks, and the distance between their weight updates."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from adapterhub.core.errors import Invalid
from adapterhub.workspace import place_for_child, scratch
from registry.exports.zip_export import fetched, run_child
from registry.models import AdapterVersion, VersionEvaluation

FACTS = ("method", "base_digest", "tokenizer_digest", "template_digest", "max_rank", "parameters", "size_bytes")


def other_version(version: AdapterVersion, number: Any) -> AdapterVersion:
    """Return the version of the same adapter with this number, as an int or text. Raises Invalid if there is none."""
    # Python reads no number of thousands of digits.
    is_number = str(number).isdecimal() and len(str(number)) < 10
    other = version.adapter.versions.filter(number=int(number)).first() if is_number else None
    if other is None:
        raise Invalid(f"{version.adapter} has no version {str(number)[:20]!r}: name one by its number.", field="to")
    return other


def compare(one: AdapterVersion, other: AdapterVersion) -> dict[str, Any]:
    """Return the differences of two versions as {from, to, facts, config, metrics, ranks, updates}.

    `from` and `to` are their served names, `updates` the rows of the function of that name, and the others lists of
    rows as `changes` gives them. Raises Unavailable if the files cannot be read or the child process fails, OutOfSpace,
    and TooMany if too many such processes run.
    """
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
    """Return a row {name, from, to, same} for every name of either side, sorted by name; a missing value is None."""
    return [
        {"name": name, "from": one.get(name), "to": other.get(name), "same": one.get(name) == other.get(name)}
        for name in sorted(one.keys() | other.keys())
    ]


def table(versions: Sequence[AdapterVersion]) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of a table in four parts: facts, metrics, configuration and ranks.

    A row has one name and a value for each version. The metrics include those of each version's latest evaluations.
    """
    measured = measurements(versions)
    return {
        "facts": beside([{name: getattr(version, name) for name in FACTS} for version in versions]),
        "metrics": beside([figures(version.metrics) | measured.get(version.pk, {}) for version in versions]),
        "configuration": beside([version.config for version in versions]),
        "ranks": beside([version.ranks for version in versions]),
    }


def beside(sides: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one row for each name of any side, with a value for each side (None if missing).

    Rows that differ come first.
    """
    names = sorted(set().union(*sides))
    rows = [row_of(name, [side.get(name) for side in sides]) for name in names]
    return sorted(rows, key=lambda row: row["same"])


def row_of(name: str, values: list[Any]) -> dict[str, Any]:
    """Return {name, values, same}; `same` is True if all values are equal."""
    return {"name": name, "values": values, "same": all(value == values[0] for value in values)}


def measurements(versions: Sequence[AdapterVersion]) -> dict[int, dict[str, Any]]:
    """Return the figures of each version's latest evaluation, and of its latest on each task, by primary key.

    The names of figures begin with `evaluated`, followed by the task if there is one.
    """
    latest: dict[int, dict[str, dict[str, Any]]] = {}
    for row in VersionEvaluation.objects.filter(version__in=versions).order_by("created_at"):
        task = row.metrics.get("task", {}).get("name", "")
        measured = row.metrics["scores"] if task else row.metrics.get("arms", {}).get("version", {})
        latest.setdefault(row.version_id, {})[f"evaluated {task}".strip()] = measured
    return {
        key: {f"{kind} {name}": value for kind, measured in kinds.items() for name, value in figures(measured).items()}
        for key, kinds in latest.items()
    }


def figures(metrics: dict[str, Any]) -> dict[str, Any]:
    """Return the metrics whose value is a number or a text, without lists and objects."""
    return {name: value for name, value in metrics.items() if isinstance(value, int | float | str)}


def updates(one: AdapterVersion, other: AdapterVersion) -> list[dict[str, Any]]:
    """Return rows {module, norm_from, norm_to, cosine_distance} of two versions' weight updates, one for each module.

    They are computed in a child process. Raises Unavailable if the files cannot be read or the child fails, OutOfSpace,
    and TooMany if too many such children run.
    """
    with place_for_child(one.project.pk), scratch() as folder:
        places = [str(fetched(version, folder / name)) for version, name in ((one, "from"), (other, "to"))]
        run_child("comparison", ["registry.evidence.comparison_process", *places, str(folder / "out.json")], folder)
        rows: list[dict[str, Any]] = json.loads((folder / "out.json").read_bytes())
    return rows
