"""Measurement of every module's worth on a sample: runs the passes that the settings need and computes the scores."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from training.tars import distributed, measures, signals
from training.tars.config import AnalysisConfig
from training.tars.measures import HALVES, GradientNorms, GradientSketch, OutputMoments
from training.tars.presets import Settings, is_open
from training.tars.probe import Probe, probe
from training.tars.sample import Sample
from training.tars.signals import Watch, Watched

# A batch with its backward pass counts in the progress as two without.
BACKWARD_WEIGHT = 2
# PEFT draws A uniform in +-1/sqrt(in): its rows have this length, and start values keep it.
ROW_LENGTH = 3**-0.5
PARTS = (None, *range(HALVES))

ByModule = dict[str, float | None]


@dataclass
class Scores:
    """Signals and scores by module name.

    A signal that was not measured is None. `spectrum` has singular values, {} unless the objective is concave; `halves`
    are the scores on the sample's two halves, in the order of the modules; `init` has start values for A, (rank, in)
    with at most rank_max rows, {} without any; `probes` has one for each rate, the best last; `sequences` is the number
    of the task's sequences.
    """

    sensitivity: ByModule
    divergence: ByModule
    weight: dict[str, float]
    score: dict[str, float]
    spectrum: dict[str, list[float]] = field(default_factory=dict)
    halves: list[list[float]] = field(default_factory=list)
    init: dict[str, Tensor] = field(default_factory=dict)
    probes: list[Probe] = field(default_factory=list)
    sequences: int = 0

    @classmethod
    def none(cls, modules: Iterable[str]) -> Scores:
        """Return the scores of a preset that measures nothing: no signals, and the score 1 for each module."""
        names = list(modules)
        return cls(dict.fromkeys(names), dict.fromkeys(names), dict.fromkeys(names, 1.0), dict.fromkeys(names, 1.0))

    @property
    def divergence_used(self) -> bool:
        """Return True if the divergence of any module was measured."""
        return any(value is not None for value in self.divergence.values())

    def of(self, name: str) -> dict[str, Any]:
        """Return a module's signals as a JSON object; stored in a plan, they suffice to plan another budget."""
        signals = {
            "sensitivity": self.sensitivity[name],
            "divergence": self.divergence[name],
            "score": self.score[name],
        }
        return signals | ({"weight": self.weight[name], "spectrum": self.spectrum[name]} if self.spectrum else {})

    def leave_out(self, names: Iterable[str]) -> None:
        """Mark modules as not measured: their signals become None, and their ranks are worth nothing."""
        for name in names:
            self.sensitivity[name] = self.divergence[name] = None
            self.weight[name] = self.score[name] = 0.0
            if self.spectrum:
                self.spectrum[name] = []

    def stability(self) -> float | None:
        """Return the rank correlation of the scores of the two halves, from -1 to 1; None without halves."""
        return spearman(*self.halves) if self.halves else None


@dataclass
class Steps:
    """A counter of the work done over all passes, which calls `report` with (work done, all work) at each advance."""

    total: int
    report: Callable[[int, int], None]
    done: int = 0

    def advance(self, weight: int) -> None:
        """Add work of this weight, and report (work done, work in all)."""
        self.done += weight
        self.report(self.done, self.total)


def measure(
    model: nn.Module,
    modules: dict[str, nn.Module],
    sample: Sample,
    settings: Settings,
    config: AnalysisConfig,
    progress: Callable[[int, int], None],
) -> Scores:
    """Measure the signals that the settings need, on the task's data, the reference and a probe; return the scores.

    `progress` gets (work done, work in all). Modules that are not of the settings' `kinds` are not measured: their
    signals are None and their scores 0. Raises LossNotFinite.
    """
    probing = settings.sensitivity == "probe"
    left_out = [name for name in modules if not is_open(name, settings.kinds)]
    modules = {name: module for name, module in modules.items() if name not in left_out}
    target = Watched({name: watch_of(module, name, settings, config) for name, module in modules.items()})
    base = Watched({name: Watch(moments=OutputMoments()) for name in modules})
    reads_base = bool(sample.base) and settings.needs_reference
    reads_target = any(watch.gradients or watch.moments for watch in target.modules.values())
    sizes = [len(own_share(-(-len(part) // sample.batch_size))) for part in (sample.target, sample.base)]
    rounds = (len(list(distributed.share(config.probe_rates))) + 1) * config.probe_steps if probing else 0
    steps = Steps(BACKWARD_WEIGHT * (reads_target * sizes[0] + rounds) + reads_base * sizes[1], progress)
    if reads_target:
        read(model, modules, target, sample.target, sample, steps, BACKWARD_WEIGHT)
    if reads_base:
        read(model, modules, base, sample.base, sample, steps, 1)
    probes = probed(model, modules, sample, config, steps) if probing else []
    scores = scored(target, base if reads_base else None, probes, settings, config, len(sample.target))
    scores.leave_out(left_out)
    return scores


def watch_of(module: nn.Module, name: str, settings: Settings, config: AnalysisConfig) -> Watch:
    """Return the measurements of a module that the settings need, all still empty."""
    sketched = settings.sensitivity == "spectrum" or settings.init == "gradient"
    return Watch(
        norms=GradientNorms() if settings.sensitivity in ("grad_norm", "spectrum") else None,
        sketch=GradientSketch.of(module, config.rank_max, config.seed) if sketched else None,
        moments=OutputMoments() if settings.needs_reference else None,
    )


def read(
    model: nn.Module,
    modules: dict[str, nn.Module],
    watched: Watched,
    sequences: list[Any],
    sample: Sample,
    steps: Steps,
    weight: int,
) -> None:
    """Measure this process's share of the sequences into `watched`, and merge it with that of the others at the end.

    `weight` is the progress that a batch counts for. Raises LossNotFinite, only where gradients are measured.
    """
    batches = list(signals.batches(sequences, sample.batch_size, sample.pad, sample.device))
    own = own_share(len(batches))
    for _ in signals.stream(model, modules, watched, (batches[number] for number in own)):
        steps.advance(weight)
    if len(own) < len(batches):
        watched.merge()


def own_share(batches: int) -> Sequence[int]:
    """Return the numbers of the batches that this process reads: all if there are fewer batches than processes."""
    return range(batches) if batches < distributed.size() else list(distributed.share(range(batches)))


def probed(
    model: nn.Module, modules: dict[str, nn.Module], sample: Sample, config: AnalysisConfig, steps: Steps
) -> list[Probe]:
    """Probe every rate on the sample's first half, spread over the processes, then the best rate on the second half.

    The last two probes returned are those of the best rate on the two halves.
    """

    def on_half(half: int, rate: float) -> Probe:
        return probe(
            model,
            modules,
            sample.shuffled(half),
            steps=config.probe_steps,
            rank=config.rank_max,
            rate=rate,
            scale=config.scale,
            seed=config.seed,
            done=lambda: steps.advance(BACKWARD_WEIGHT),
        )

    tried = distributed.every(list(config.probe_rates), lambda rate: on_half(0, rate))
    best = min(tried, key=lambda candidate: candidate.reached)
    return [*(candidate for candidate in tried if candidate is not best), best, on_half(1, best.rate)]


def scored(
    target: Watched,
    base: Watched | None,
    probes: list[Probe],
    settings: Settings,
    config: AnalysisConfig,
    sequences: int,
) -> Scores:
    """Return the scores of all modules, over the whole sample and its halves, with the signals behind them.

    score = sensitivity * weight; the weight is the divergence (linear), or 1 + the divergence over its mean (concave).
    """
    names = list(target.modules)
    sketched = {n: watch.sketch.spectrum(config.rank_max) for n, watch in target.modules.items() if watch.sketch}
    spectra = spectra_of(sketched, probes, settings)
    halves = torch.tensor(target.halves)
    sensitivity = {name: sensitivities(target, base, name, probes, spectra, settings, halves) for name in names}
    divergence = {name: divergences(target, base, name, settings) for name in names}
    weights = weighted(divergence, settings)
    score = {name: [s * w for s, w in zip(sensitivity[name], weights[name], strict=True)] for name in names}
    return Scores(
        {name: values[0] for name, values in sensitivity.items()},
        {name: values[0] for name, values in divergence.items()},
        {name: values[0] for name, values in weights.items()},
        {name: values[0] for name, values in score.items()},
        spectra if settings.objective == "concave" else {},
        [[score[name][1 + half] for name in names] for half in range(HALVES)],
        {name: started(vectors) for name, (_, vectors) in sketched.items()} if settings.init == "gradient" else {},
        probes[:-1],
        sequences,
    )


def spectra_of(
    sketched: dict[str, tuple[Tensor, Tensor]], probes: list[Probe], settings: Settings
) -> dict[str, list[float]]:
    """Return each module's spectrum by the settings' `sensitivity`; {} unless that is `probe` or `spectrum`.

    `probe`: the mean of the spectra of the best rate's probes on the sample's two halves. `spectrum`: the gradient's
    leading singular values.
    """
    if settings.sensitivity == "probe":
        first, second = (half_probe.spectra for half_probe in probes[-HALVES:])
        return {name: [round((a + b) / 2, 6) for a, b in zip(first[name], second[name], strict=True)] for name in first}
    if settings.sensitivity == "spectrum":
        return {name: [float(f"{value:.6g}") for value in values] for name, (values, _) in sketched.items()}
    return {}


def sensitivities(
    target: Watched,
    base: Watched | None,
    name: str,
    probes: list[Probe],
    spectra: dict[str, list[float]],
    settings: Settings,
    halves: Tensor,
) -> list[float]:
    """Return a module's sensitivity on the whole sample and on each half, by the settings' `sensitivity`.

    It is the sum of its spectrum's values to the power `power` (probe, spectrum), the root mean square of its
    gradient's norms (grad_norm, and the halves of spectrum), or else its output's shift from the reference.
    """
    watch = target.modules[name]
    if settings.sensitivity == "probe":
        parts = [spectra[name], *(means.spectra[name] for means in probes[-HALVES:])]
        return [sum(value**settings.power for value in part) for part in parts]
    if watch.norms is not None:
        squares = watch.norms.values()
        parts_of_norms = [squares, *(squares[halves == half] for half in range(HALVES))]
        means = [float(part.mean().sqrt()) if len(part) else 0.0 for part in parts_of_norms]
        # A sketch of each half would double the memory: the halves are compared by their gradient norms instead.
        whole = sum(value**settings.power for value in spectra[name]) if spectra else means[0]
        return [whole, *means[1:]]
    return shifts(watch, base.modules[name] if base else None)


def shifts(watch: Watch, base: Watch | None) -> list[float]:
    """Return a module's relative output shift on the whole sample and on each half.

    1 for each if it was not measured.
    """
    if watch.moments is None or base is None or base.moments is None:
        return [1.0] * len(PARTS)
    reference = base.moments.of()[0]
    return [measures.output_shift(reference, watch.moments.of(part)[0]) for part in PARTS]


def divergences(target: Watched, base: Watched | None, name: str, settings: Settings) -> list[float | None]:
    """Return a module's divergence from the whole reference, on the sample and on each half.

    Each is None if it was not measured.
    """
    moments = target.modules[name].moments
    if base is None or moments is None or settings.divergence == "none":
        return [None] * len(PARTS)
    reference = base.modules[name].moments
    assert reference is not None  # noqa: S101 - every module of the reference pass has moments
    return [divergence(reference.of(), moments.of(part), settings) for part in PARTS]


Moments = tuple[Tensor, Tensor]


def divergence(base: Moments, target: Moments, settings: Settings) -> float:
    """Return the divergence in nats of two (mean, variance) of a module's outputs, in the settings' direction."""
    first, second = (base, target) if settings.direction == "base_target" else (target, base)
    if settings.divergence == "gaussian_diag":
        return measures.gaussian_divergence(first, second)
    return measures.softmax_divergence(first[0], second[0])


def weighted(divergence: dict[str, list[float | None]], settings: Settings) -> dict[str, list[float]]:
    """Return each module's weights on the whole sample and on each half; 1 for a divergence that was not measured.

    A weight is the divergence (linear), or 1 + the divergence over the mean of all modules (concave).
    """
    columns = list(zip(*divergence.values(), strict=True))
    means = [sum(value or 0.0 for value in column) / len(column) for column in columns]

    def weight(value: float | None, mean: float) -> float:
        if value is None:
            return 1.0
        return value if settings.objective == "linear" else 1.0 + value / (mean or 1.0)

    return {name: [weight(v, m) for v, m in zip(values, means, strict=True)] for name, values in divergence.items()}


def started(directions: Tensor) -> Tensor:
    """Return start values for A, (rank, in) in float32: the input directions at the length of PEFT's rows.

    `directions` are the leading ones of the gradient, (rank, in).
    """
    return (directions * ROW_LENGTH).float().contiguous()


def spearman(first: list[float], second: list[float]) -> float:
    """Return the rank correlation of two lists to six decimals; 0 if one of them is constant."""
    import numpy as np
    from scipy.stats import rankdata

    ranks = np.asarray([rankdata(first), rankdata(second)], dtype=np.float64)
    if (ranks.std(axis=1) == 0).any():
        return 0.0
    return round(float(np.asarray(np.corrcoef(ranks))[0, 1]), 6)
