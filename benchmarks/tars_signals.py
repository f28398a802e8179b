"""Which signal says before the training where ranks will be needed? Rank correlation with what a full run used.

    python benchmarks/tars_signals.py --model DIR --data DIR --out benchmarks/results/tars_signals.json

The need of a module is the energy ||B A||^2 of its adapter after a full run at uniform rank 32 and its best rate. Every
row of the table is a signal: the mean over the domains, and each domain's figure in its name.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from report import Row, publish
from scipy.stats import spearmanr
from tars import corpus
from tars.arms import Arm, Loop
from tars.llama import KINDS, Base, Stack, module_name
from tars.plans import REFERENCE
from tars.side_by_side import Run, together
from transformers import AutoModelForCausalLM, AutoTokenizer

from training.lm.token_sequences import read_rows
from training.tars import measures, signals
from training.tars.analysis import linear_modules
from training.tars.config import AnalysisConfig
from training.tars.measures import GradientNorms, GradientSketch, OutputMoments
from training.tars.probe import probe
from training.tars.sample import Sample
from training.tars.signals import Watch, Watched

DOMAINS = ("eu_law", "french", "kjv", "icd10")
SCALE, LENGTH, RANK, RATE = 2.0, 256, 32, 4e-3
PROBES = ((5, 4e-3), (10, 2e-3), (10, 4e-3), (10, 8e-3), (20, 4e-3))
CONFIG = AnalysisConfig(samples=320, max_length=LENGTH, batch_size=16, rank_max=RANK)

Signal = dict[str, float]  # by module name


def main() -> int:
    options = parse()
    if options.model is None or options.data is None:
        sys.stdout.write("tars_signals needs --model and --data: see the top of the file.\n")
        return 0 if options.short else 2
    correlation_of = correlations(options)
    rows = []
    for signal in correlation_of[options.domains[0]]:
        values = [correlation_of[domain][signal] for domain in options.domains]
        each = ", ".join(f"{domain} {value:+.3f}" for domain, value in zip(options.domains, values, strict=True))
        mean = sum(values) / len(values)
        rows.append(Row(f"{signal} ({each})", round(mean, 3), 1.0, round(mean, 3)))
    publish("tars_signals", rows, options.out)
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--domains", type=lambda text: text.split(","), default=list(DOMAINS))
    parser.add_argument("--steps", type=int, default=Loop.steps)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--short", action="store_true")
    return parser.parse_args()


def correlations(options: argparse.Namespace) -> dict[str, Signal]:
    """By domain and signal."""
    torch.set_float32_matmul_precision("high")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    tokenizer = AutoTokenizer.from_pretrained(str(options.model))
    model = AutoModelForCausalLM.from_pretrained(str(options.model), dtype=dtype).to(device).eval()
    corpora = {name: corpus.load(options.data, name, tokenizer, LENGTH, device) for name in options.domains}
    needs = needed(Stack(Base.of(model), SCALE, LENGTH, compiled=device == "cuda"), corpora, Loop(steps=options.steps))
    correlation_of = {}
    for domain in options.domains:
        started = time.monotonic()
        signals_of = dict(measured(model, tokenizer, corpora[domain].documents))
        correlation_of[domain] = {name: correlation(signal, needs[domain]) for name, signal in signals_of.items()}
        sys.stdout.write(f"{domain}: {time.monotonic() - started:.1f} s {correlation_of[domain]}\n")
        sys.stdout.flush()
    return correlation_of


def correlation(signal: Signal, need: Signal) -> float:
    names = list(need)
    return float(spearmanr([signal[name] for name in names], [need[name] for name in names]).statistic)


def needed(stack: Stack, corpora: dict[str, Any], loop: Loop) -> dict[str, Signal]:
    """Energy of every module's adapter after a full run, by domain."""
    names = [module_name(layer, kind) for layer in range(len(stack.base.layers)) for kind in KINDS]
    runs = [Run({}, domain, Arm(dict.fromkeys(names, RANK), RATE, 1)) for domain in corpora]
    return {
        done.run.domain: {name: float((b @ a).square().sum()) for name, (a, b) in done.factors.items()}
        for done in together(stack, corpora, runs, loop)
    }


def measured(model: Any, tokenizer: Any, documents: list[str]) -> Iterator[tuple[str, Signal]]:
    """Every signal of every module."""
    modules = linear_modules(model)
    rows = [{"text": text} for text in documents]
    sample = Sample.of(model, tokenizer, rows, read_rows(REFERENCE), CONFIG)
    target = Watched(
        {
            name: Watch(GradientNorms(), GradientSketch.of(module, RANK, 0), OutputMoments())
            for name, module in modules.items()
        }
    )
    base = Watched({name: Watch(moments=OutputMoments()) for name in modules})
    for watched, sequences in ((target, sample.target), (base, sample.base)):
        source = signals.batches(sequences, sample.batch_size, sample.pad, sample.device)
        for _ in signals.stream(model, modules, watched, source):
            pass
    yield from of_gradients(target)
    yield from of_outputs(target, base)
    for steps, rate in PROBES:
        halves = [
            probe(model, modules, sample.shuffled(half), steps=steps, rank=RANK, rate=rate, scale=SCALE, seed=0)
            for half in (0, 1)
        ]
        spectra = {
            name: [(a + b) / 2 for a, b in zip(*(half.spectra[name] for half in halves), strict=True)]
            for name in modules
        }
        yield f"probe, 2 x {steps} steps at {rate:g}, energy", {n: sum(v**2 for v in s) for n, s in spectra.items()}
        yield f"probe, 2 x {steps} steps at {rate:g}, sum of sigma", {n: sum(s) for n, s in spectra.items()}


def of_gradients(target: Watched) -> Iterator[tuple[str, Signal]]:
    watches = target.modules
    yield "grad_norm", {n: float(w.norms.values().mean().sqrt()) for n, w in watches.items() if w.norms}
    spectra = {n: w.sketch.spectrum(RANK)[0] for n, w in watches.items() if w.sketch}
    yield "spectrum, sum of sigma", {n: float(s.sum()) for n, s in spectra.items()}
    yield "spectrum, energy", {n: float(s.square().sum()) for n, s in spectra.items()}


def of_outputs(target: Watched, base: Watched) -> Iterator[tuple[str, Signal]]:
    pairs = {n: (base.modules[n].moments, watch.moments) for n, watch in target.modules.items()}
    moments = {n: (b.of(), t.of()) for n, (b, t) in pairs.items() if b and t}
    yield "output_shift", {n: measures.output_shift(b[0], t[0]) for n, (b, t) in moments.items()}
    yield "softmax_mean", {n: measures.softmax_divergence(b[0], t[0]) for n, (b, t) in moments.items()}
    yield "gaussian_diag, base_target", {n: measures.gaussian_divergence(b, t) for n, (b, t) in moments.items()}
    yield "gaussian_diag, target_base", {n: measures.gaussian_divergence(t, b) for n, (b, t) in moments.items()}


if __name__ == "__main__":
    sys.exit(main())
