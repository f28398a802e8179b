"""The model card of a version, made from its records: base, data, method, ranks, losses and lineage. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml

from adapterhub.core.counts import counted

Json = dict[str, Any]
METRIC_NAMES = {"loss_before": "Held-out loss of the base, nats a token", "loss_after": "Held-out loss of this version"}


def card(version: Json, dossier: Json, evaluations: list[Json]) -> str:
    """Return the text of README.md, with the front matter that hubs read. It has only recorded facts."""
    return "\n".join(["---", front(dossier).strip(), "---", "", *body(version, dossier, evaluations), ""])


def front(dossier: Json) -> str:
    """Return the card's metadata as YAML text."""
    about = dossier["1 General description"]
    base = about["base model"]["source"] or about["base model"]["name"]
    metadata = {"base_model": base, "library_name": "peft", "tags": ["adapterhub", about["adapter"]]}
    return yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)


def body(version: Json, dossier: Json, evaluations: list[Json]) -> Iterator[str]:
    """Yield the card's text, line by line."""
    about, development = dossier["1 General description"], dossier["2 Elements and development"]
    yield f"# {version['served_name']}"
    yield f"\n{about['purpose']}\n"
    yield from table(
        {
            "Base model": f"{about['base model']['name']}, sha256 `{about['base model']['digest']}`",
            "Weights": f"sha256 `{version['digest']}`",
            "Data": f"sha256 `{development['data']}`",
            "Method": development["method"],
            "Parameters": f"{development['parameters']:,}",
            "Ranks": ranks_of(version["ranks"]),
            "Published": about["published"],
        }
    )
    yield "\n## Measured\n"
    yield from table(measured(version["metrics"], evaluations))
    yield "\n## Lineage\n"
    lineage = dossier["6 Changes through the lifecycle"]["lineage"]
    names = {node["id"]: f"{node['kind'].replace('_', ' ')} {node['name']}" for node in lineage["nodes"]}
    yield from (f"- {names[one]} → {names[other]}" for one, other in lineage["edges"])


def table(rows: Json) -> Iterator[str]:
    """Yield a Markdown table of the names and values in `rows`, without a header."""
    yield "| | |\n|---|---|"
    yield from (f"| {name} | {str(value).replace('|', '/')} |" for name, value in rows.items())


def ranks_of(ranks: dict[str, int]) -> str:
    """Return the ranks in words: `none`, one number, or the range and the number of modules."""
    if not ranks:
        return "none"
    low, high = min(ranks.values()), max(ranks.values())
    return f"{low}" if low == high else f"{low} to {high}, planned for {counted(len(ranks), 'module')}"


def measured(metrics: Json, evaluations: list[Json]) -> Json:
    """Return the version's measurements as {label: text}, for the card; {"Nothing": "was measured"} without any."""
    rows: Json = {name: metrics[key] for key, name in METRIC_NAMES.items() if metrics.get(key) is not None}
    if metrics.get("eval_rows"):
        rows["Measured on"] = (
            f"{counted(metrics['eval_tokens'], 'token')} of {counted(metrics['eval_rows'], 'held-out row')}"
        )
    # The newest first: of a task's scores the latest stand.
    for evaluation in reversed(evaluations):
        task = ((evaluation.get("metrics") or {}).get("task") or {}).get("name")
        scores = (evaluation.get("metrics") or {}).get("scores") or {}
        rows |= {f"lm-eval {task}, {name}": f"{score:.4f}" for name, score in scores.items()}
        for other, change in ((evaluation.get("metrics") or {}).get("differences") or {}).items():
            beside = evaluation["against"] if other == "against" else "the base"
            interval = f"{change['low']:+.4f} to {change['high']:+.4f}"
            rows[f"Loss beside {beside}"] = f"{change['mean']:+.4f} ({interval}, 95 %)"
    return rows or {"Nothing": "was measured"}
