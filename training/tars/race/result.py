"""The race of a rank analysis: it is prepared from the configuration, held, and described for the plan."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn

from training.lm.token_sequences import Row
from training.tars import allocation
from training.tars.allocation import Bounds
from training.tars.config import AnalysisConfig
from training.tars.race import candidates as field_of
from training.tars.race import outcome
from training.tars.race.candidates import Candidate, Recipe
from training.tars.race.contest import LONGER, Contest, Cost, Entry, Rows, Run
from training.tars.sample import sampled_sequences

# Candidates that train side by side: a GPU is idle with one small model, a processor is not.
AT_ONCE, CPU_AT_ONCE = 8, 2
# Sequences from which a race draws those that it trains on and scores.
MOST_ROWS = 4096


@dataclass(frozen=True)
class Raced:
    """The chosen recipe with its learning rate for the run, and the race as a JSON object for the plan."""

    recipe: Recipe
    rate: float
    as_dict: dict[str, Any]


@dataclass
class Race:
    """A race that is ready to be held; its cost is known."""

    contest: Contest
    candidates: list[Candidate]

    @classmethod
    def of(
        cls,
        model: nn.Module,
        modules: Mapping[str, nn.Module],
        shapes: Mapping[str, Sequence[int]],
        tokenizer: Any,
        rows: Sequence[Row],
        config: AnalysisConfig,
        recipes: Sequence[Recipe] | None = None,
    ) -> Race:
        """Prepare the race of the configuration, of these recipes; None are those that suit the device.

        `modules` and `shapes`, (out, in) each, are by module name. Raises DataError for rows that cannot be read
        (TooFewRows if they are too few), RaceTooShort, and AllocationError for a budget that no candidate meets.
        """
        device = next(model.parameters()).device
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
        sequences = sampled_sequences(rows, tokenizer, config, most=MOST_ROWS)
        bounds = Bounds(0, config.rank_max, config.quantum)
        on_cpu = device.type == "cpu"
        rates = config.race_rates or field_of.rates_of(
            model.config.get_text_config().hidden_size,  # type: ignore[union-attr,operator]
            field_of.CPU_FACTORS if on_cpu else field_of.FACTORS,
        )
        if recipes is None:
            recipes = field_of.RECIPES[: field_of.CPU_RECIPES] if on_cpu else field_of.RECIPES
        budget = allocation.budget_parameters(config.budget_kind, config.budget_value, shapes.values())
        entered = field_of.field(shapes, budget, bounds, sorted(rates), recipes)
        held_out = Rows.of(sequences, pad, device)
        run = Run(config.run_steps, config.run_batch_size, config.run_scheduler)
        cost = Cost.of(run, config.race_share, held_out, len(entered) // len(rates), len(rates))
        chosen = entered[: cost.recipes * len(rates)]
        at_once = CPU_AT_ONCE if on_cpu else AT_ONCE
        contest = Contest(model, modules, held_out, run, cost, config.scale, config.seed, at_once)
        return cls(contest, chosen)

    @property
    def total_steps(self) -> int:
        """Return the steps of all candidates together."""
        return self.contest.total_steps(len(self.candidates))

    def hold(self, start: Mapping[str, Tensor], advance: Callable[[int], None]) -> Raced:
        """Hold the race with these start values for A by module; return the chosen recipe, its rate and the record.

        `advance(n)` is called whenever n more steps of candidates are done. Raises AllDiverged and UnknownArchitecture.
        """
        self.contest.start, self.contest.advance = start, advance
        return result(self.contest, self.contest.hold(self.candidates))


def result(contest: Contest, entries: Sequence[Entry]) -> Raced:
    """Return the outcome of a race that was held.

    Of winner and runner-up that the rows do not tell apart, the one with fewer parameters is chosen.
    """
    counted, steps = contest.rows.counted, LONGER * contest.cost.steps
    order = sorted(entries, key=lambda entry: entry.mean(steps, counted))
    winner = order[0]
    runner_up = rival_of(winner, order, steps, counted)
    between = outcome.difference(winner.losses[steps], runner_up.losses[steps], counted) if runner_up else None
    is_tie = between is not None and between.includes_zero
    chosen = min((winner, runner_up), key=parameters) if is_tie and runner_up else winner
    by_length = best_rates(contest, entries, chosen.candidate.recipe)
    rate = float(f"{outcome.advised([best for _, best in by_length]):.3g}")
    tried = {entry.candidate.rate for entry in entries}
    base = contest.base_losses
    record = {
        "candidates": [described(entry, contest) for entry in entries],
        "winner": entries.index(winner),
        "runner_up": entries.index(runner_up) if runner_up else None,
        "chosen": entries.index(chosen),
        "difference": asdict(between) if between else None,
        "no_difference": is_tie,
        "rate": {
            "advised": rate,
            "run_steps": contest.run.steps,
            "is_at_edge": len(tried) > 1 and any(best in (min(tried), max(tried)) for _, best in by_length),
            "by_length": [{"steps": length, "rate": float(f"{best:.3g}")} for length, best in by_length],
        },
        "tokens": {
            "trained": contest.trained,
            "scored": contest.scored,
            "allowed": contest.cost.allowed,
            "run": contest.cost.run_tokens,
        },
        "rows": {"trained": len(contest.rows.train), "scored": len(contest.rows.scored)},
        "batch_size": contest.cost.batch_size,
        "base_loss": None if base is None else json_loss(float(base @ counted / counted.sum())),
    }
    return Raced(chosen.candidate.recipe, rate, record)


def parameters(entry: Entry) -> int:
    """Return the number of parameters of an entry's adapter."""
    return entry.candidate.parameters


def rival_of(winner: Entry, order: Sequence[Entry], steps: int, counted: Any) -> Entry | None:
    """Return the best entry of another recipe than the winner's that ended the last round; None if there is none."""
    others = (entry for entry in order if entry.candidate.recipe != winner.candidate.recipe)
    return next((entry for entry in others if math.isfinite(entry.mean(steps, counted))), None)


def best_rates(contest: Contest, entries: Sequence[Entry], recipe: Recipe) -> list[tuple[int, float]]:
    """Return (steps, best rate) of a recipe for each round, shortest first.

    A round from which it has no finite loss is left out.
    """
    rates = []
    for steps in (contest.cost.steps, LONGER * contest.cost.steps):
        own = [entry for entry in entries if entry.candidate.recipe == recipe]
        best = outcome.best_rate({each.candidate.rate: each.mean(steps, contest.rows.counted) for each in own})
        if best is not None:
            rates.append((steps, best))
    return rates


def described(entry: Entry, contest: Contest) -> dict[str, Any]:
    """Return an entry as a JSON object: the candidate, and the loss after each round that it was in."""
    counted = contest.rows.counted
    rounds = [{"steps": steps, "loss": json_loss(entry.mean(steps, counted))} for steps in sorted(entry.losses)]
    return {**entry.candidate.described(), "rounds": rounds, "diverged": any(each["loss"] is None for each in rounds)}


def json_loss(loss: float) -> float | None:
    """Return the loss to six decimals; None for one that is not finite, which JSON cannot hold."""
    return round(loss, 6) if math.isfinite(loss) else None
