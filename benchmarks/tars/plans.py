"""The arms of the comparison on one domain: what each trains, from one rank analysis and one budget."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tars import eva
from tars.corpus import Corpus
from tars.llama import KINDS, Base, module_name
from torch import Tensor

from training.lm.token_sequences import read_rows
from training.tars.allocation import reallocate
from training.tars.analysis import Analysis, analyze
from training.tars.config import AnalysisConfig

MLP = KINDS[4:]
UNIFORM_RANK = 8
ADALORA_START = 12
SHUFFLE_SEED = 7
REFERENCE = Path(__file__).parents[2] / "training" / "reference.txt"

Ranks = dict[str, int]


@dataclass(frozen=True)
class Recipe:
    """What an arm trains: ranks, start values of A, method, rate of B over rate of A."""

    ranks: Ranks
    a: Mapping[str, Tensor] | None = None
    method: str = "lora"
    ratio: float = 1.0


@dataclass
class Domain:
    """One domain's analyses, made once and kept."""

    name: str
    base: Base
    default: Analysis
    seed: Analysis
    eva: tuple[Ranks, dict[str, Tensor]]
    gradient: dict[str, Tensor]
    ratio: float = 1.0

    @property
    def names(self) -> list[str]:
        return [module_name(layer, kind) for layer in range(len(self.base.layers)) for kind in KINDS]

    def cost(self, name: str) -> int:
        return sum(self.base.shape(name.rsplit(".", 1)[-1]))

    @property
    def budget(self) -> int:
        return UNIFORM_RANK * sum(self.cost(name) for name in self.names)

    def parameters(self, ranks: Ranks) -> int:
        return sum(self.cost(name) * rank for name, rank in ranks.items())

    def planned(self, share: float) -> Ranks:
        """The default preset's ranks for a share of the budget."""
        plan = reallocate(self.default.as_dict(), "parameters", int(share * self.budget))
        return {module["name"]: module["rank"] for module in plan["modules"] if module["rank"]}

    def uniform(self, share: float, kinds: tuple[str, ...] = KINDS) -> Ranks:
        """One rank in every module of these kinds, and one more in evenly spread ones until the budget is spent."""
        names = [name for name in self.names if name.rsplit(".", 1)[-1] in kinds]
        remaining = int(share * self.budget)
        rank, remaining = divmod(remaining, sum(self.cost(name) for name in names))
        ranks = dict.fromkeys(names, rank)
        for name in sorted(names, key=lambda name: hash_of(name)):
            if self.cost(name) <= remaining:
                ranks[name] += 1
                remaining -= self.cost(name)
        return {name: rank for name, rank in ranks.items() if rank}


def hash_of(name: str) -> float:
    return random.Random(name).random()


def shuffled(ranks: Ranks) -> Ranks:
    """The same ranks in other layers, kind by kind."""
    moved: Ranks = {}
    for kind in KINDS:
        names = [name for name in ranks if name.endswith("." + kind)]
        values = [ranks[name] for name in names]
        random.Random(SHUFFLE_SEED).shuffle(values)
        moved |= dict(zip(names, values, strict=True))
    return moved


def analysed(
    name: str, model: Any, tokenizer: Any, corpus: Corpus, config: AnalysisConfig, advice: Mapping[str, float]
) -> Domain:
    """The default and the seed preset's analysis, and EVA's, on the training documents of the domain.

    `advice` is what the tuning domains said: the default's `power`, and the ratio of B's learning rate to A's.
    """
    rows = [{"text": text} for text in corpus.documents]
    default = analyze(model, tokenizer, rows, None, replaced(config, preset="default", power=advice["power"]))
    seed = analyze(model, tokenizer, rows, read_rows(REFERENCE), replaced(config, preset="seed", init="gradient"))
    sample = corpus.train[: config.samples, :-1]
    base = Base.of(model)
    return Domain(name, base, default, seed, eva.plan(model, sample, UNIFORM_RANK), seed.init, advice["ratio"])


def replaced(config: AnalysisConfig, **changes: Any) -> AnalysisConfig:
    return AnalysisConfig(**{**config.__dict__, **changes})


ARMS: dict[str, Callable[[Domain], Recipe]] = {
    "uniform": lambda d: Recipe(d.uniform(1.0)),
    "uniform 0.85": lambda d: Recipe(d.uniform(0.85)),
    "uniform 0.7": lambda d: Recipe(d.uniform(0.7)),
    "mlp": lambda d: Recipe(d.uniform(1.0, MLP)),
    "uniform + init": lambda d: Recipe(d.uniform(1.0), d.gradient),
    "mlp + init": lambda d: Recipe(d.uniform(1.0, MLP), d.gradient),
    "mlp 0.7 + init": lambda d: Recipe(d.uniform(0.7, MLP), d.gradient),
    "seed": lambda d: Recipe({m["name"]: m["rank"] for m in d.seed.modules}),
    "default": lambda d: Recipe(d.planned(1.0), d.gradient, ratio=d.ratio),
    "default 0.85": lambda d: Recipe(d.planned(0.85), d.gradient, ratio=d.ratio),
    "default 0.7": lambda d: Recipe(d.planned(0.7), d.gradient, ratio=d.ratio),
    "default 0.5": lambda d: Recipe(d.planned(0.5), d.gradient, ratio=d.ratio),
    "default, ranks alone": lambda d: Recipe(d.planned(1.0)),
    "default, shuffled": lambda d: Recipe(shuffled(d.planned(1.0)), d.gradient, ratio=d.ratio),
    "eva": lambda d: Recipe(*d.eva),
    "dora": lambda d: Recipe(d.uniform(1.0), method="dora"),
    "adalora": lambda d: Recipe(dict.fromkeys(d.names, ADALORA_START), method="adalora"),
    "mlp 2B": lambda d: Recipe(d.uniform(2.0, MLP)),
}
