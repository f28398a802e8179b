"""The rank analysis: one pass over the data with gradients, one over the reference without, then the allocation."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from training.tars import allocation, data, signals
from training.tars.data import Row, TokenSequence

FEWEST_SEQUENCES = 8
STABLE = 0.7
# A batch with its backward pass counts in the progress as two without.
BACKWARD_WEIGHT = 2
SAME = 0.05
VERDICTS = {
    "follow_plan": "Both halves of the sample rank the modules alike (stability {stability:.2f}): the plan is no "
    "accident of the sample. Whether it beats uniform ranks only a run of each can tell.",
    "uniform_as_good": "The plan hardly differs from the same rank everywhere: take uniform ranks.",
    "sample_too_small": "The sample of {sequences} sequences is too small (stability {stability:.2f}): add samples, or "
    "take uniform ranks.",
}

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class AnalysisConfig:
    """`budget_kind` is uniform_rank, parameters or bytes; lengths in tokens; `scale` is alpha / r of every module."""

    budget_kind: str = "uniform_rank"
    budget_value: int = 16
    preset: str = "seed"
    rank_min: int = 4
    rank_max: int = 64
    quantum: int = 4
    scale: float = 2.0
    samples: int = 64
    max_length: int = 256
    batch_size: int = 4
    seed: int = 0

    @property
    def bounds(self) -> tuple[int, int, int]:
        return self.rank_min, self.rank_max, self.quantum


@dataclass(frozen=True)
class Analysis:
    """A plan and the evidence for it. `stability` is the rank correlation of the scores of two halves, or None."""

    preset: str
    rank_min: int
    rank_max: int
    quantum: int
    scale: float
    modules: list[dict[str, Any]]
    r: int
    lora_alpha: int | float
    rank_pattern: dict[str, int]
    alpha_pattern: dict[str, int | float]
    target_modules: list[str]
    parameters: int
    budget: dict[str, Any]
    divergence_used: bool
    stability: float | None
    sequences: int
    verdict: str
    verdict_text: str
    seconds: float = field(compare=False)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class Scores:
    """Signals by module name; `halves` are the scores of the two halves of the sample."""

    sensitivity: dict[str, float | None]
    divergence: dict[str, float | None]
    score: dict[str, float]
    halves: list[list[float]]
    sequences: int


def analyze(
    model: nn.Module,
    tokenizer: Any,
    rows: Sequence[Row],
    reference: Sequence[Row] | None = None,
    config: AnalysisConfig | None = None,
    progress: Progress = lambda step, total: None,
) -> Analysis:
    """Plan the rank of every linear module of `model` but its head, for `rows`.

    Without `reference` there is no divergence and a score is the sensitivity alone. `progress` gets (batches done,
    batches in all). Raises AllocationError and DataError; the model is left as it was.
    """
    started = time.monotonic()
    config = config or AnalysisConfig()
    modules = linear_modules(model)
    shapes = [list(module.weight.shape) for module in modules.values()]
    allocation.check_budget(config.budget_kind, config.budget_value, shapes, *config.bounds)
    if config.preset == "uniform":
        scores = Scores(dict.fromkeys(modules), dict.fromkeys(modules), dict.fromkeys(modules, 1.0), [], 0)
    else:
        scores = measure(model, tokenizer, modules, rows, reference, config, progress)
    return planned(modules, scores, config, started)


def linear_modules(model: nn.Module) -> dict[str, nn.Linear]:
    """Every linear module by full name, in the model's order, without the output head."""
    head = model.get_output_embeddings()  # type: ignore[operator]
    found = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    return {name: module for name, module in found.items() if module is not head}


def measure(
    model: nn.Module,
    tokenizer: Any,
    modules: dict[str, nn.Linear],
    rows: Sequence[Row],
    reference: Sequence[Row] | None,
    config: AnalysisConfig,
    progress: Progress,
) -> Scores:
    """Stream the sample, and the reference when there is one."""
    target = sampled(rows, tokenizer, config)
    base = sampled(reference, tokenizer, config) if reference else []
    device = next(model.parameters()).device
    sizes = [-(-len(sequences) // config.batch_size) for sequences in (target, base)]
    total, done = BACKWARD_WEIGHT * sizes[0] + sizes[1], 0
    sums: list[signals.Sums] = [{}, {}]
    for index, (sequences, weight) in enumerate(((target, BACKWARD_WEIGHT), (base, 1))):
        stream = signals.batches(sequences, config.batch_size, pad_of(tokenizer), device)
        for running in signals.stream(model, modules, stream, gradients=index == 0):
            sums[index] = running
            done += weight
            progress(done, total)
    return scored(sums[0], sums[1], target)


def pad_of(tokenizer: Any) -> int:
    """Padding is masked everywhere, so any token will do."""
    return tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0


def sampled(rows: Sequence[Row], tokenizer: Any, config: AnalysisConfig) -> list[TokenSequence]:
    sequences = data.tokenised(data.sample(rows, config.samples, config.seed), tokenizer, config.max_length)
    if not sequences:
        raise data.DataError("No row has a completion within max_length tokens: raise max_length.")
    return sequences


def scored(target: signals.Sums, base: signals.Sums, sequences: list[TokenSequence]) -> Scores:
    """LSS = sqrt(mean over sequences of ||dL/dW||^2), L a sequence's mean loss; TDS by softmax; score = LSS * TDS."""
    order = sorted(range(len(sequences)), key=lambda place: (len(sequences[place].ids), place))
    halves = torch.tensor([place % signals.HALVES for place in order])
    sensitivity = {name: sensitivities(sums, halves) for name, sums in target.items()}
    divergence = {name: divergences(sums, base.get(name)) for name, sums in target.items()}
    score = {name: [s * (1.0 if d is None else d) for s, d in zip(sensitivity[name], divergence[name], strict=True)]
             for name in target}  # fmt: skip
    return Scores(
        {name: values[0] for name, values in sensitivity.items()},
        {name: values[0] for name, values in divergence.items()},
        {name: values[0] for name, values in score.items()},
        [[values[1 + half] for values in score.values()] for half in range(signals.HALVES)],
        len(sequences),
    )


def sensitivities(sums: signals.ModuleSums, halves: torch.Tensor) -> list[float]:
    """Of the whole sample and of each half."""
    norms = torch.tensor(sums.squared_norms, dtype=torch.float64)
    parts = [norms, *(norms[halves == half] for half in range(signals.HALVES))]
    return [float(part.mean().sqrt()) if len(part) else 0.0 for part in parts]


def divergences(sums: signals.ModuleSums, base: signals.ModuleSums | None) -> list[float | None]:
    """Of the whole sample and of each half, against the whole reference."""
    if base is None:
        return [None] * (1 + signals.HALVES)
    return [signals.softmax_divergence(base.mean_output(), sums.mean_output(half)) for half in (None, 0, 1)]


def planned(modules: dict[str, nn.Linear], scores: Scores, config: AnalysisConfig, started: float) -> Analysis:
    described = [
        {
            "name": name,
            "shape": list(module.weight.shape),
            "sensitivity": scores.sensitivity[name],
            "divergence": scores.divergence[name],
            "score": scores.score[name],
        }
        for name, module in modules.items()
    ]
    fields = allocation.plan_fields(
        described, config.preset, config.budget_kind, config.budget_value, config.bounds, config.scale
    )
    stability = spearman(*scores.halves) if scores.halves else None
    verdict, text = judged(fields["modules"], stability, scores.sequences)
    return Analysis(
        preset=config.preset,
        rank_min=config.rank_min,
        rank_max=config.rank_max,
        quantum=config.quantum,
        scale=config.scale,
        **fields,
        divergence_used=any(value is not None for value in scores.divergence.values()),
        stability=stability,
        sequences=scores.sequences,
        verdict=verdict,
        verdict_text=text,
        seconds=round(time.monotonic() - started, 3),
    )


def spearman(first: list[float], second: list[float]) -> float:
    """Rank correlation; 0 when one side is constant."""
    import numpy as np
    from scipy.stats import rankdata

    ranks = np.asarray([rankdata(first), rankdata(second)], dtype=np.float64)
    if (ranks.std(axis=1) == 0).any():
        return 0.0
    return round(float(np.asarray(np.corrcoef(ranks))[0, 1]), 6)


def judged(modules: list[dict[str, Any]], stability: float | None, sequences: int) -> tuple[str, str]:
    """(verdict, one or two sentences)."""
    parameters = [allocation.cost(module["shape"]) * module["rank"] for module in modules]
    mean_rank = sum(parameters) / sum(allocation.cost(module["shape"]) for module in modules)
    moved = sum(
        allocation.cost(module["shape"]) * abs(module["rank"] - mean_rank) for module in modules
    ) / (2 * sum(parameters))  # fmt: skip
    if stability is not None and (sequences < FEWEST_SEQUENCES or stability < STABLE):
        verdict = "sample_too_small"
    else:
        verdict = "uniform_as_good" if moved < SAME else "follow_plan"
    return verdict, VERDICTS[verdict].format(stability=stability or 0.0, sequences=sequences)
