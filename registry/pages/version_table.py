"""The tables that compare versions on a page: differences first, values in words, and the ranks as a summary."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from django.contrib.humanize.templatetags.humanize import intcomma
from django.template.defaultfilters import filesizeformat

from adapterhub.charts import heat_map
from adapterhub.core.counts import counted
from adapterhub.core.method_names import method_name
from registry.evidence.comparison import table
from registry.models import AdapterVersion

MOST_MODULES, MOST_ENTRIES = 20, 8
SHA256 = re.compile(r"[0-9a-f]{64}")
LABELS = {
    "base_digest": "base model (sha256)",
    "tokenizer_digest": "tokenizer (sha256)",
    "template_digest": "chat template (sha256)",
    "max_rank": "highest rank",
    "size_bytes": "size",
    "loss_before": "held-out loss before",
    "loss_after": "held-out loss after",
    "loss_served": "held-out loss on the 16-bit base",
    "eval_tokens": "held-out tokens",
    "eval_rows": "held-out rows",
    "r": "rank without a plan",
    "lora_alpha": "alpha",
    "target_modules": "modules",
}
# Ranks are summed up by themselves; these would repeat them, one entry a module.
PATTERNS = ("rank_pattern", "alpha_pattern")


def comparison_of(versions: Sequence[AdapterVersion]) -> dict[str, Any]:
    """Return {different, same, ranks}: the differing and the equal fields as rows of words, and the ranks' summary."""
    parts = table(versions)
    rows = [
        {"group": group, "name": row["name"], "label": label_of(row["name"]), "same": row["same"], "values": words(row)}
        for group in ("metrics", "facts", "configuration")
        for row in parts[group]
        if row["name"] not in PATTERNS
    ]
    return {
        "different": [row for row in rows if not row["same"]],
        "same": [row for row in rows if row["same"]],
        "ranks": ranks_of(versions, parts["ranks"]),
    }


def label_of(name: str) -> str:
    """Return the label of a field as pages show it."""
    return LABELS.get(name, name.replace("_", " ").replace(" f1", " F1"))


def words(row: dict[str, Any]) -> list[str]:
    """Return a row's values as display texts, one for each version."""
    return [in_words(row["name"], value) for value in row["values"]]


def in_words(name: str, value: Any) -> str:
    """Return one value in words: sizes with their unit, the beginning of a digest, the first entries of long lists."""
    if value is None or value == "":
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if name == "method":
        return method_name(value)
    if name == "size_bytes":
        return str(filesizeformat(value))
    if isinstance(value, int):
        return str(intcomma(value))
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | dict):
        return listed(value)
    return value[:12] if SHA256.fullmatch(str(value)) else str(value)


def listed(value: list[Any] | dict[str, Any]) -> str:
    """Return the first MOST_ENTRIES entries of a list or an object as text, and how many more there are."""
    entries = [f"{key}: {part}" for key, part in value.items()] if isinstance(value, dict) else [*map(str, value)]
    if not entries:
        return "none"
    rest = len(entries) - MOST_ENTRIES
    return ", ".join(entries[:MOST_ENTRIES]) + (f" and {rest} more" if rest > 0 else "")


def ranks_of(versions: Sequence[AdapterVersion], rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return a summary and a heat map of each version's ranks, and the modules whose ranks differ.

    The modules with the largest difference come first. `rows` are the rows of ranks in the comparison's table.
    """
    most = max((rank for version in versions for rank in version.ranks.values()), default=1)
    different = [row for row in rows if not row["same"]]
    by_spread = sorted(different, key=lambda row: (-spread(row["values"]), row["name"]))
    return {
        "versions": [
            {"version": version, "summary": summary_of(version.ranks), "heat": heat_map(version.ranks, most)}
            for version in versions
        ],
        "modules": len(rows),
        "differing": len(different),
        "first": by_spread[:MOST_MODULES],
        "rest": by_spread[MOST_MODULES:],
    }


def spread(ranks: Sequence[int | None]) -> int:
    """Return the difference between the highest and the lowest rank.

    None, a module that is not adapted, counts as 0.
    """
    numbers = [rank or 0 for rank in ranks]
    return max(numbers) - min(numbers)


def summary_of(ranks: dict[str, int]) -> str:
    """Return a phrase with the number of modules that have a rank, and the lowest and highest rank."""
    used = [rank for rank in ranks.values() if rank]
    if not used:
        return "no module has a rank"
    low, high = min(used), max(used)
    return f"{counted(len(used), 'module')}, " + (f"rank {low} everywhere" if low == high else f"ranks {low} to {high}")
