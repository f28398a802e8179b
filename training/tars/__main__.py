"""Plan LoRA ranks for a model and a data file: `python -m training.tars --model DIR --data FILE --out plan.json`.

`python -m training.tars compress` makes a trained adapter smaller instead (training/tars/compress.py).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import Progress, TimeRemainingColumn
from rich.table import Table

from training.lm import token_sequences
from training.lm.error_reporting import BadInput, guarded, last
from training.lm.events import Events
from training.lm.lean_import import leave_out_bitsandbytes
from training.tars import presets
from training.tars.command_support import atomically, budget, named
from training.tars.heat_map import kind_of, svg

if TYPE_CHECKING:
    from training.tars.analysis import Analysis
    from training.tars.race.contest import Cost

OWN_WORDS = "self"
LEAST = {"samples": 1, "max_length": 2, "batch_size": 1, "probe_steps": 1, "threads": 0}
LEAST |= {"run_steps": 1, "run_batch_size": 1}


def main(arguments: list[str] | None = None) -> int:
    """Plan ranks, write the plan and print it; with `compress` first, make an adapter smaller instead.

    Return the exit status: 0, 2 for bad input, 1 for any other error; one of several processes is ended with it.
    `arguments` None takes those of the command line.
    """
    words = sys.argv[1:] if arguments is None else arguments
    if words[:1] == ["compress"]:
        from training.tars.compress import main as compress

        return compress(words[1:])
    options = parse(words)
    events = Events(options.events)

    def work() -> None:
        analysis = run(options, events)
        if is_first_process():
            written(options, analysis)
            show(analysis.as_dict(), options.out)

    return last(guarded(events, work))


def parse(arguments: list[str]) -> argparse.Namespace:
    """Return the options of the command line; exits with status 2 and a usage message for wrong ones."""
    parser = argparse.ArgumentParser(prog="python -m training.tars", description=__doc__)
    parser.add_argument("--model", required=True, help="folder of the base model, or its id on a hub")
    parser.add_argument("--data", type=Path, required=True, help="JSONL, Parquet or text of the task")
    parser.add_argument("--reference", help="file of general text to diverge from, or `self`: the model's own words")
    parser.add_argument("--budget", type=budget, default=("uniform", 16), help="uniform:RANK, params:N or bytes:N")
    parser.add_argument("--preset", choices=tuple(presets.PRESETS), default="default")
    for name, values in presets.CHOICES.items():
        parser.add_argument(f"--{name}", choices=values, help="instead of the preset's")
    parser.add_argument("--power", type=float, help="f of the worth sum(sigma ** f), instead of the preset's")
    parser.add_argument("--rank-min", type=int, help="instead of the preset's")
    for name, value in {"rank-max": 32, "quantum": 4, "samples": 128, "max-length": 256, "probe-steps": 10}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    for name, value in {"batch-size": 4, "seed": 0, "threads": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument(
        "--probe-rates", type=rates, default=presets.PROBE_RATES, help="learning rates to try: 2e-3,4e-3"
    )
    parser.add_argument(
        "--target-modules", type=words_of, help="last parts of module names, such as q_proj,v_proj; all by default"
    )
    add_race(parser)
    parser.add_argument("--scale", type=float, default=2.0, help="alpha / r of every module")
    parser.add_argument("--events", type=Path, help="append progress as JSON lines")
    parser.add_argument("--heat-map", type=Path, help="write the plan as a picture: an .svg")
    parser.add_argument(
        "--out", type=Path, required=True, help="plan.json; the start values for A are written beside it"
    )
    return parser.parse_args(arguments)


def add_race(parser: argparse.ArgumentParser) -> None:
    """Add the options of the preset race: the run to come, and what the race may cost."""
    parser.add_argument("--run-steps", type=int, default=600, help="race: steps of the run to come")
    parser.add_argument("--run-batch-size", type=int, default=8, help="race: sequences in each of them")
    parser.add_argument(
        "--run-scheduler", choices=presets.SCHEDULERS, default=presets.SCHEDULERS[0], help="race: how its rate falls"
    )
    parser.add_argument("--race-share", type=float, default=0.15, help="race: most tokens, as a share of the run's")
    parser.add_argument("--race-rates", type=rates, help="race: learning rates to try; those for the model by default")


def rates(text: str) -> tuple[float, ...]:
    """Parse learning rates separated by commas. Raises ArgumentTypeError unless each is above 0 and below 1."""
    try:
        parsed = tuple(float(part) for part in text.split(","))
    except ValueError:
        parsed = ()
    if not parsed or not all(0 < rate < 1 for rate in parsed):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of learning rates between 0 and 1 such as 2e-3,4e-3")
    return parsed


def words_of(text: str) -> tuple[str, ...]:
    """Return the words separated by commas, without spaces around them and without empty ones."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def run(options: argparse.Namespace, events: Events) -> Analysis:
    """Check the options, load the model and the data, and return the analysis.

    Raises BadInput that names the option.
    """
    for name, least in LEAST.items():
        if getattr(options, name) < least:
            raise BadInput(f"--{name.replace('_', '-')}: is {getattr(options, name)}; it must be at least {least}.")
    require_places(options)
    with named("--data"):
        presets.settings_of(options.preset, **{name: getattr(options, name) for name in presets.CHOICES})
        rows = token_sequences.read_rows(options.data)
    with named("--reference"):
        from_file = options.reference and options.reference != OWN_WORDS
        reference = token_sequences.read_rows(Path(options.reference)) if from_file else None
    return analysed(options, rows, reference, events)


def require_places(options: argparse.Namespace) -> None:
    """Check that the outputs can be written, before the long analysis: folders exist and a heat map ends in .svg.

    Raises BadInput that names the option.
    """
    for flag, path in (("--out", options.out), ("--heat-map", options.heat_map)):
        if path and not path.parent.is_dir():
            raise BadInput(f"{flag}: the folder {path.parent} does not exist; make it, or name another.")
    if options.heat_map and options.heat_map.suffix != ".svg":
        raise BadInput(f"--heat-map: {options.heat_map.name} must end in .svg, the only format that is written.")


def is_first_process() -> bool:
    """Return True in the first process, which alone reports and writes files."""
    return int(os.environ.get("RANK", "0")) == 0


def analysed(options: argparse.Namespace, rows: list[Any], reference: list[Any] | None, events: Events) -> Analysis:
    """Load the model and return the analysis of the rows.

    `reference` None stands for no reference, unless the option --reference names the model's own words: they are then
    generated. Raises BadInput.
    """
    import torch

    leave_out_bitsandbytes(Path(options.model))
    from training.lm.base_model import load_named
    from training.tars import distributed
    from training.tars.analysis import analyze
    from training.tars.config import AnalysisConfig
    from training.tars.sample import own_words

    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    chosen = {name: getattr(options, name) for name in AnalysisConfig.__dataclass_fields__ if hasattr(options, name)}
    config = AnalysisConfig(*options.budget, **chosen)
    with distributed.together(), refused(), reporter(events) as progress:
        tokenizer, model = load_named(options.model, "--model")
        if options.reference == OWN_WORDS:
            reference = own_words(model, tokenizer, config)
        return analyze(model, tokenizer, rows, reference, config, progress, say_cost)


def say_cost(cost: Cost) -> None:
    """Print how many tokens a race will read to standard error, in the first process, before it begins."""
    if is_first_process():
        sys.stderr.write(
            f"The race reads at most {cost.allowed:,} tokens, {cost.allowed / cost.run_tokens:.0%} of the run's "
            f"{cost.run_tokens:,}; a token that is only scored counts half.\n"
        )


@contextlib.contextmanager
def refused() -> Iterator[None]:
    """Convert errors of an analysis in the block to BadInput with the option to change."""
    from training.tars.analysis import NoLinearModules
    from training.tars.race.contest import AllDiverged, RaceTooShort
    from training.tars.race.side_by_side import UnknownArchitecture
    from training.tars.signals import LossNotFinite

    with named("--data"):
        try:
            yield
        except (NoLinearModules, UnknownArchitecture) as error:
            raise BadInput(f"--target-modules: {error}") from None
        except (RaceTooShort, AllDiverged) as error:
            raise BadInput(f"--{error.field.replace('_', '-')}: {error}") from None
        except LossNotFinite as error:
            raise BadInput(f"--model: {error}") from None


@contextlib.contextmanager
def reporter(events: Events) -> Iterator[Callable[[int, int], None]]:
    """Yield a callback(done, total) that shows a progress bar on a terminal and writes progress events.

    Only the first process reports.
    """
    with Progress(
        *Progress.get_default_columns()[:3],
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not (sys.stderr.isatty() and is_first_process()),
    ) as bar:
        task = bar.add_task("Analysing")

        def report(step: int, total: int) -> None:
            bar.update(task, completed=step, total=total)
            if is_first_process():
                events.progress(step, total)

        yield report


def written(options: argparse.Namespace, analysis: Analysis) -> None:
    """Write the start values and the heat map, if any, and the plan last, so that whoever sees it finds all files."""
    if analysis.init:
        from safetensors.torch import save

        atomically(init_path(options.out), save(analysis.init))
    plan = analysis.as_dict()
    if options.heat_map:
        atomically(options.heat_map, svg(plan["modules"], f"LoRA ranks, {plan['parameters']:,} parameters").encode())
    atomically(options.out, (json.dumps(plan, indent=1, allow_nan=False) + "\n").encode())


def init_path(plan: Path) -> Path:
    """Return the path of a plan's start values, in the same folder: A (rank_max, in) in float32 by full module name."""
    return plan.with_name(plan.stem + ".init.safetensors")


def show(plan: dict[str, Any], out: Path) -> None:
    """Print the plan: ranks by kind of module, cost of serving, probed learning rate, verdict and the path `out`."""
    table = Table("module", "ranks (layer by layer)", title=f"{plan['parameters']:,} parameters")
    kinds: dict[str, list[int]] = {}
    for module in plan["modules"]:
        kinds.setdefault(kind_of(module["name"]), []).append(module["rank"])
    for kind, ranks in kinds.items():
        table.add_row(kind, " ".join(map(str, ranks)))
    console = Console()
    console.print(table)
    serving = plan["serving"]
    console.print(f"A slot of vLLM at --max-lora-rank {serving['max_lora_rank']}: {serving['slot_bytes']:,} bytes.")
    if plan["race"]:
        console.print(bracket(plan["race"]))
    elif plan["learning_rate"]:
        console.print(probed(plan["probes"], plan["learning_rate"]))
    console.print(plan["verdict_text"])
    console.print(f"Written to {out}", soft_wrap=True)


def bracket(race: dict[str, Any]) -> Table:
    """Return the race as a table: every candidate with its loss after each round, and what it cost."""
    tokens = race["tokens"]
    title = f"Race: {tokens['trained']:,} tokens trained, {tokens['scored']:,} scored, of a run of {tokens['run']:,}"
    table = Table("kinds", "rank", "start values", "rate", "loss by steps", "", title=title)
    places = {race["winner"]: "winner", race["runner_up"]: "runner-up"}
    for place, candidate in enumerate(race["candidates"]):
        losses = "  ".join(
            f"{each['steps']}: {'diverged' if each['loss'] is None else format(each['loss'], '.4f')}"
            for each in candidate["rounds"]
        )
        start = "yes" if candidate["start_values"] else "no"
        named = (candidate["kinds"], str(candidate["rank"]), start, f"{candidate['rate']:g}")
        table.add_row(*named, losses, places.get(place, ""))
    return table


def probed(probes: list[dict[str, Any]], lowest: float) -> str:
    """Return sentences on what the probe measured: the loss at each rate that it tried, and the rate of the lowest."""
    ordered = sorted(probes, key=lambda probe: float(probe["rate"]))
    losses = ", ".join(
        f"{probe['rate']:g}: {'diverged' if probe['loss'] is None else format(probe['loss'], '.3f')}"
        for probe in ordered
    )
    return (
        f"Losses of the probe by learning rate: {losses}. The lowest is that of {lowest:g}, held constant over a few "
        "steps; the best rate of a whole run depends on its length and ranks, and may be lower or higher."
    )


if __name__ == "__main__":
    sys.exit(main())
