"""Figures of `whole_product.py` from the answers of a crowd, and the rows of its table."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from benchmarks.product_clients import Answer, percentiles, speed
from benchmarks.report import Row

HOT = 12  # adapters of a batch in which nothing is loaded: with the alias of before they fit into the slots
NOISE = 0.05
# Answers that began later than this after a promotion's or rollback's response must come from the new version.
SETTLED_S = 2.0
Figures = dict[str, Any]


def judged(answers: list[Answer]) -> Figures:
    """Count the requests that failed, or came from a version that they do not name."""
    good = [each for each in answers if each.status == 200]
    return {
        "requests": len(answers),
        "failed": len(answers) - len(good),
        "failures": dict(Counter(f"{each.status} {each.text[:120]}" for each in answers if each.status != 200)),
        "misnamed": sum(each.named != each.version for each in good),
        "versions": dict(Counter(each.version for each in good)),
        "tokens_per_s": speed(good),
        **percentiles([each.ended - each.began for each in good]),
    }


def switched(answers: list[Answer], moments: dict[str, float], stable: str, candidate: str) -> Figures:
    """When the last request of the old version began after each move, and answers that were later than allowed."""
    figures: Figures = {}
    ends = {"promotion": moments["rollback"], "rollback": float("inf")}
    for verb, old in (("promotion", stable), ("rollback", candidate)):
        late = [each.began for each in answers if each.version == old and moments[verb] <= each.began < ends[verb]]
        figures[f"{verb}_answered_s"] = moments[f"{verb} answered"] - moments[verb]
        figures[f"{verb}_last_old_s"] = max(late, default=moments[verb]) - moments[verb]
        figures[f"{verb}_wrong"] = sum(each > moments[f"{verb} answered"] + SETTLED_S for each in late)
    return figures


def unsteady(answers: list[Answer], end: float) -> set[str]:
    """Users that more than one version answered while they had an arm, up to the promotion."""
    split = [each for each in answers if each.arm != "none" and each.began < end]
    served: dict[str, set[str]] = defaultdict(set)
    for each in split:
        served[each.user].add(each.version)
    return {user for user, versions in served.items() if len(versions) > 1}


def perturbed(source: Path, folder: Path, seed: int) -> Path:
    """Another adapter near a trained one."""
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_bytes((source / "adapter_config.json").read_bytes())
    dice = np.random.default_rng(seed)
    weights = load_file(source / "adapter_model.safetensors")
    noisy = {
        name: (each + NOISE * each.std() * dice.standard_normal(each.shape)).astype(each.dtype)
        for name, each in weights.items()
    }
    save_file(noisy, folder / "adapter_model.safetensors")
    return folder


def rows_of(figures: Figures) -> list[Row]:
    """The goals, and both sides of each comparison."""
    rows: list[Row] = []
    stages = ("rollout", "killed", *(name for name in figures if name.startswith("zipf")))
    for stage in [stage for stage in stages if stage in figures]:
        of, goal = figures[stage], None if "zipf" in stage else 1.0
        wrong = ("misnamed", "wrong", "promotion_wrong", "rollback_wrong", "unsteady_users")
        for what, count in (("failed", of["failed"]), ("of a wrong version", sum(of.get(name, 0) for name in wrong))):
            share = (of["requests"] - count) / of["requests"]
            rows.append(Row(f"{stage}: answers {what}", count, of["requests"], share, goal))
    for side in ("plugin", "stock"):
        if (both := [figures.get(f"zipf, {side}, {copies}") for copies in ("one", "all")]) and all(both):
            one, everywhere = (each["requests"] / each["seconds"] for each in both if each)
            rows.append(
                Row(f"requests/s by Zipf's law, {side}, on one server against all", one, everywhere, one / everywhere)
            )
    for clients in sorted({int(name.split()[-2]) for name in figures if name.startswith("overhead")}):
        ours, peer = (figures[f"overhead, {name}, {clients} clients"] for name in ("router", "direct"))
        for kind in ("first", "whole"):
            for cut in ("p50_ms", "p95_ms"):
                label = f"{kind} {cut}, {clients} clients, router against direct"
                rows.append(Row(label, ours[kind][cut], peer[kind][cut], peer[kind][cut] / ours[kind][cut]))
    for stage in ("hot 1", f"hot {HOT}"):
        if f"{stage}, stock" in figures:
            plugin, stock = (median_speed(figures[f"{stage}, {side}"]) for side in ("plugin", "stock"))
            label = f"tokens/s through the router, {stage}, plugin against stock"
            rows.append(Row(label, plugin, stock, plugin / stock))
    return rows


def median_speed(of: Figures) -> float:
    return float(np.median(of["tokens_per_s"]))
