"""From lines of runs to what they say: differences paired by seed and held-out block, with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

RIVALS = ("uniform", "mlp", "uniform + init", "mlp + init")
DRAWS = 4000

Line = dict[str, Any]


def best_rate(lines: Iterable[Line], domain: str, arm: str, seed: int) -> float:
    """The swept rate with the least held-out loss; a loss that is no number is none."""
    swept = [line for line in lines if (line["domain"], line["arm"], line["seed"]) == (domain, arm, seed)]
    loss_of = {line["rate"]: line["loss"] if line["loss"] == line["loss"] else np.inf for line in swept}
    return min(loss_of, key=lambda rate: loss_of[rate])


@dataclass(frozen=True)
class Interval:
    """A relative difference in percent: mean and 95 % bounds."""

    mean: float
    low: float
    high: float


def losses(lines: Sequence[Line], domain: str, arm: str, sweep_seed: int) -> dict[int, NDArray[np.float64]]:
    """Held-out losses by fresh seed, at the arm's best rate."""
    rate = best_rate(lines, domain, arm, sweep_seed)
    final = [line for line in lines if (line["domain"], line["arm"], line["rate"]) == (domain, arm, rate)]
    return {line["seed"]: np.asarray(line["losses"]) for line in final if line["seed"] != sweep_seed}


def difference(ours: dict[int, NDArray[np.float64]], peer: dict[int, NDArray[np.float64]]) -> Interval:
    """(ours - peer) / peer in percent over shared seeds; seeds and blocks are drawn anew, both sides alike."""
    seeds = sorted(set(ours) & set(peer))
    a, b = np.stack([ours[seed] for seed in seeds]), np.stack([peer[seed] for seed in seeds])
    random = np.random.default_rng(0)
    resampled = []
    for _ in range(DRAWS):
        rows = random.integers(0, len(seeds), len(seeds))
        columns = random.integers(0, a.shape[1], a.shape[1])
        resampled.append(a[np.ix_(rows, columns)].mean() / b[np.ix_(rows, columns)].mean() - 1)
    low, high = np.percentile(resampled, [2.5, 97.5])
    return Interval(100 * float(a.mean() / b.mean() - 1), 100 * float(low), 100 * float(high))


def rival(lines: Sequence[Line], domain: str, sweep_seed: int = 100) -> str:
    """The best of the plain placements, each with and without the start value, on this domain."""
    means = {arm: np.mean([part.mean() for part in losses(lines, domain, arm, sweep_seed).values()]) for arm in RIVALS}
    return min(means, key=lambda arm: float(means[arm]))


def table(lines: Sequence[Line], domains: Sequence[str], sweep_seed: int = 100) -> list[Compared]:
    """Every arm with fresh seeds against the rival, domain by domain."""
    rows = []
    for domain in domains:
        against = rival(lines, domain)
        for arm in dict.fromkeys(line["arm"] for line in lines if line["domain"] == domain):
            if row := compared(lines, domain, arm, against, sweep_seed):
                rows.append(row)
    return rows


# (what, our loss, the rival's loss, the rival's over ours)
Compared = tuple[str, float, float, float]


def compared(lines: Sequence[Line], domain: str, arm: str, against: str, sweep_seed: int) -> Compared | None:
    ours, peer = (losses(lines, domain, name, sweep_seed) for name in (arm, against))
    shared = sorted(set(ours) & set(peer))
    if not shared:
        return None
    interval = difference(ours, peer)
    share = parameters(lines, domain, arm) / parameters(lines, domain, "uniform")
    bounds = f"{interval.mean:+.2f} % [{interval.low:+.2f}, {interval.high:+.2f}]"
    label = f"{domain}: {arm} ({share:.2f} B) against {against}, {bounds}, {len(shared)} seeds"
    mean, other = (float(np.mean([side[seed].mean() for seed in shared])) for side in (ours, peer))
    return label, round(mean, 4), round(other, 4), round(other / mean, 4)


def parameters(lines: Sequence[Line], domain: str, arm: str) -> int:
    return next(int(line["parameters"]) for line in lines if line["domain"] == domain and line["arm"] == arm)
