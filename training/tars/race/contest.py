"""The rounds of a race: candidates train on the same rows, and the better half goes on to a run of twice the length.

Every round is a whole run with the decayed schedule of the run to come, from the start: a rate that is best at a
constant value, or for a run that was cut short, is another one. All candidates read the same rows in the same order,
and are scored on rows that none of them trains on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from training.lm.token_sequences import IGNORED, DataError, TokenSequence
from training.tars import distributed
from training.tars.race.candidates import Candidate, Recipe
from training.tars.race.outcome import best_rate
from training.tars.race.side_by_side import Lane, SideBySide
from training.tars.signals import Batch, batch_of

# Rows that score: a quarter of all, within these bounds.
FEWEST_SCORED, MOST_SCORED = 8, 12
# A row that is only scored needs no backward pass: half the work of one that is trained on.
SCORED_COST = 0.5
# A race with fewer steps in its first round would be of noise alone.
FEWEST_STEPS = 6
# Rates that each recipe keeps for the second round, and recipes that reach it.
KEPT_RATES, KEPT_RECIPES = 3, 2
LONGER = 2
# A race reads batches of this part of the run's.
PART_OF_BATCH = 8


class TooFewRows(DataError):
    """Raised if the rows are too few to hold some out for the scores and to train on the others."""

    def __init__(self, count: int) -> None:
        super().__init__(
            f"A race holds {FEWEST_SCORED} rows out and trains on as many others, and {count} have a token to predict: "
            "add rows, or take the preset default."
        )


class RaceTooShort(ValueError):
    """Raised if the share of the run's tokens is too small for the smallest race; `field` is the setting to change."""

    field = "race_share"

    def __init__(self, needed: int, allowed: int) -> None:
        super().__init__(
            f"The race may read {allowed:,} tokens, and its smallest form needs {needed:,}: raise race_share or "
            "run_steps, or take the preset default."
        )


class AllDiverged(ValueError):
    """Raised if no candidate ends with a finite loss; `field` is the setting to change."""

    field = "race_rates"

    def __init__(self) -> None:
        super().__init__("Every candidate of the race diverged: name lower race_rates.")


@dataclass(frozen=True)
class Rows:
    """The race's rows: those to train on, in the order in which they are read, and those that score."""

    train: list[TokenSequence]
    scored: list[TokenSequence]
    pad: int
    device: torch.device

    @classmethod
    def of(cls, sequences: Sequence[TokenSequence], pad: int, device: torch.device) -> Rows:
        """Hold the first quarter of the sequences out for the scores, within the bounds, and train on the others.

        The bounds are FEWEST_SCORED and MOST_SCORED. A held-out sequence that the others contain, too, is dropped.
        Raises TooFewRows if fewer than FEWEST_SCORED are left on either side.
        """
        count = min(max(FEWEST_SCORED, len(sequences) // 4), MOST_SCORED)
        train = list(sequences[count:])
        known = {tuple(sequence.ids) for sequence in train}
        scored = [sequence for sequence in sequences[:count] if tuple(sequence.ids) not in known]
        if len(scored) < FEWEST_SCORED or len(train) < FEWEST_SCORED:
            raise TooFewRows(len(sequences))
        return cls(train, scored, pad, device)

    def batches(self, size: int, steps: int) -> list[Batch]:
        """Return the first `steps` batches, the same for every candidate; the rows begin again at their end."""
        places = [[(step * size + place) % len(self.train) for place in range(size)] for step in range(steps)]
        return [batch_of(self.train, part, self.pad, self.device) for part in places]

    def scoring(self, size: int) -> list[Batch]:
        """Return the scored rows in batches, in their order."""
        starts = range(0, len(self.scored), size)
        ends = len(self.scored)
        return [batch_of(self.scored, range(at, min(at + size, ends)), self.pad, self.device) for at in starts]

    @property
    def counted(self) -> NDArray[np.float64]:
        """Return the number of counted tokens of each scored row."""
        return np.asarray([sum(label != IGNORED for label in row.labels[1:]) for row in self.scored], dtype=np.float64)

    def tokens(self, size: int, steps: int) -> int:
        """Return the number of tokens in the first `steps` batches."""
        return sum(len(self.train[place % len(self.train)].ids) for place in range(size * steps))

    @property
    def tokens_a_row(self) -> float:
        """Return the mean length of the rows to train on."""
        return sum(len(row.ids) for row in self.train) / len(self.train)


@dataclass(frozen=True)
class Run:
    """The run to come: its steps, sequences a step, and how its rate falls.

    `scheduler` is linear, cosine or constant; `warmup` is the share of the steps in which the rate rises.
    """

    steps: int
    batch_size: int
    scheduler: str = "linear"
    warmup: float = 0.0

    def factor(self, step: int, steps: int) -> float:
        """Return the part of the peak rate at a step of a run of so many steps with this schedule."""
        rising = int(self.warmup * steps)
        if step < rising:
            return (step + 1) / rising
        part = (step - rising) / max(1, steps - rising)
        if self.scheduler == "cosine":
            return 0.5 * (1 + math.cos(math.pi * part))
        return 1.0 if self.scheduler == "constant" else 1 - part


@dataclass(frozen=True)
class Cost:
    """The size of a race: `allowed` is the most tokens that it may read, `run_tokens` those of the run to come.

    A token that is only scored counts half. `steps` are those of the first round, `batch_size` the sequences a step,
    and `recipes` the number of recipes that take part.
    """

    run_tokens: int
    allowed: int
    steps: int
    batch_size: int
    recipes: int

    @classmethod
    def of(cls, run: Run, share: float, rows: Rows, recipes: int, rates: int) -> Cost:
        """Return the longest race of as many of the recipes as the share of the run's tokens allows.

        `share` is from 0 to 1; `recipes` is the number that could take part, each at `rates` learning rates. No round
        is longer than the run. Raises RaceTooShort.
        """
        length = rows.tokens_a_row
        run_tokens = int(run.steps * run.batch_size * length)
        size = max(1, run.batch_size // PART_OF_BATCH)
        scored = SCORED_COST * sum(len(row.ids) for row in rows.scored)
        for count in range(recipes, 0, -1):
            first = count * rates
            second = min(count, KEPT_RECIPES) * min(rates, KEPT_RATES)
            spare = share * run_tokens - (first + second) * scored
            steps = int(spare / ((first + LONGER * second) * size * length))
            # More recipes only where each still has a race worth the name.
            while steps > 0 and first * rows.tokens(size, steps) + second * rows.tokens(size, LONGER * steps) > spare:
                steps -= 1  # the rows that it reads are longer than the mean
            if steps >= (FEWEST_STEPS if count <= KEPT_RECIPES else 4 * FEWEST_STEPS):
                # A race as long as the run would be the run itself.
                return cls(run_tokens, int(share * run_tokens), min(steps, run.steps // LONGER), size, count)
        needed = (first + second) * scored + FEWEST_STEPS * (first + LONGER * second) * size * length
        raise RaceTooShort(int(needed), int(share * run_tokens))


@dataclass
class Entry:
    """A candidate in the race: by length in steps its losses on the scored rows (infinite once it diverged)."""

    candidate: Candidate
    losses: dict[int, NDArray[np.float64]] = field(default_factory=dict)

    def mean(self, steps: int, counted: NDArray[np.float64]) -> float:
        """Return the mean loss of a counted token after the round of `steps` steps.

        Infinite if the candidate diverged or was not in that round. `counted` has the number of counted tokens of each
        scored row.
        """
        if steps not in self.losses:
            return math.inf
        mean = float(self.losses[steps] @ counted / counted.sum())
        return mean if math.isfinite(mean) else math.inf


@dataclass
class Contest:
    """A race of candidates on one model: two rounds, the second of twice the length for the better half.

    `scale` is alpha / r; `at_once` candidates train side by side; `start` has start values of A by module. `advance(n)`
    is called whenever this process has done n more steps of candidates. `trained` and `scored` count the tokens read.
    """

    model: nn.Module
    modules: Mapping[str, nn.Module]
    rows: Rows
    run: Run
    cost: Cost
    scale: float
    seed: int
    at_once: int
    start: Mapping[str, Tensor] = field(default_factory=dict)
    advance: Callable[[int], None] = lambda steps: None
    trained: int = 0
    scored: int = 0
    base_losses: NDArray[np.float64] | None = None

    def hold(self, candidates: Sequence[Candidate]) -> list[Entry]:
        """Race the candidates; return all, with the losses of the rounds that each was in.

        Raises AllDiverged and UnknownArchitecture.
        """
        entries = [Entry(candidate) for candidate in candidates]
        self.base_losses = self.untrained()
        self.round(entries, self.cost.steps)
        survivors = self.survivors(entries)
        self.round(survivors, LONGER * self.cost.steps)
        if all(math.isinf(entry.mean(LONGER * self.cost.steps, self.rows.counted)) for entry in survivors):
            raise AllDiverged
        return entries

    def untrained(self) -> NDArray[np.float64]:
        """Return the base's own losses on the scored rows."""
        lane = Lane({next(iter(self.modules)): 1}, 0.0)
        side = SideBySide(self.model, self.modules, [lane], self.scale, self.seed)
        losses: NDArray[np.float64] = side.evaluate(self.rows.scoring(self.cost.batch_size))[0].double().cpu().numpy()
        return losses

    def round(self, entries: Sequence[Entry], steps: int) -> None:
        """Train every entry from the start for so many steps, and store its losses on the scored rows in it.

        The processes share the entries. The tokens that are read are counted. A collective call: every process must
        make it.
        """
        groups = [entries[at : at + self.at_once] for at in range(0, len(entries), self.at_once)]
        reached = distributed.every(groups, lambda group: self.scores([each.candidate for each in group], steps))
        for group, losses in zip(groups, reached, strict=True):
            for entry, row in zip(group, losses, strict=True):
                entry.losses[steps] = row
        self.trained += len(entries) * self.rows.tokens(self.cost.batch_size, steps)
        self.scored += len(entries) * sum(len(row.ids) for row in self.rows.scored)

    def scores(self, candidates: Sequence[Candidate], steps: int) -> list[NDArray[np.float64]]:
        """Train the candidates side by side; return the losses of each on the scored rows."""
        lanes = [Lane(each.ranks, each.rate, self.start if each.recipe.start_values else None) for each in candidates]
        side = SideBySide(self.model, self.modules, lanes, self.scale, self.seed)
        for step, batch in enumerate(self.rows.batches(self.cost.batch_size, steps)):
            side.step(batch, self.run.factor(step, steps))
            self.advance(len(candidates))
        scored = side.evaluate(self.rows.scoring(self.cost.batch_size)).double().cpu().numpy()
        return list(scored)

    def survivors(self, entries: Sequence[Entry]) -> list[Entry]:
        """Return the entries for the second round: of the KEPT_RECIPES best recipes, those nearest to the best rate.

        Entries that diverged are left out. Raises AllDiverged if all did.
        """
        counted, steps = self.rows.counted, self.cost.steps
        by_recipe: dict[Recipe, list[Entry]] = {}
        for entry in entries:
            if math.isfinite(entry.mean(steps, counted)):
                by_recipe.setdefault(entry.candidate.recipe, []).append(entry)
        if not by_recipe:
            raise AllDiverged
        order = sorted(by_recipe, key=lambda recipe: min(each.mean(steps, counted) for each in by_recipe[recipe]))
        return [entry for recipe in order[:KEPT_RECIPES] for entry in self.nearest(by_recipe[recipe])]

    def nearest(self, entries: Sequence[Entry]) -> list[Entry]:
        """Return the KEPT_RATES entries of one recipe whose rates are nearest to its best one, by their logarithms."""
        losses = {each.candidate.rate: each.mean(self.cost.steps, self.rows.counted) for each in entries}
        best = math.log(best_rate(losses) or entries[0].candidate.rate)
        return sorted(entries, key=lambda each: abs(math.log(each.candidate.rate) - best))[:KEPT_RATES]

    def total_steps(self, candidates: int) -> int:
        """Return the steps of all candidates together over both rounds, for the progress.

        `candidates` is the number of those that enter; none is taken to diverge.
        """
        second = min(self.cost.recipes, KEPT_RECIPES) * min(candidates // self.cost.recipes, KEPT_RATES)
        return (candidates + LONGER * second) * self.cost.steps
