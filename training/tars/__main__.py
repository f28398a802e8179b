"""Plan LoRA ranks for a model and a data file: `python -m training.tars --model DIR --data FILE --out plan.json`."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress, TimeRemainingColumn
from rich.table import Table

from training.tars import allocation, data
from training.tars.boundary import BadInput, guarded
from training.tars.events import Events


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0, 2 for bad input, 1 for anything else."""
    given = parse(arguments)
    events = Events(given.events)

    def work() -> None:
        analysis = run(given, events)
        write_atomically(given.out, analysis)
        show(analysis, given.out)

    return guarded(events, work)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m training.tars", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="folder of the base model")
    parser.add_argument("--data", type=Path, required=True, help="JSONL, Parquet or text of the task")
    parser.add_argument("--reference", type=Path, help="general text to diverge from; without it, sensitivity alone")
    parser.add_argument("--budget", type=budget, default=("uniform", 16), help="uniform:RANK, params:N or bytes:N")
    parser.add_argument("--preset", choices=allocation.PRESETS, default="seed")
    for name, value in {"rank-min": 4, "rank-max": 64, "quantum": 4, "samples": 64, "max-length": 256}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    for name, value in {"batch-size": 4, "seed": 0, "threads": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--scale", type=float, default=2.0, help="alpha / r of every module")
    parser.add_argument("--events", type=Path, help="append progress as JSON lines")
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args(arguments)


def budget(text: str) -> tuple[str, int]:
    kind, _, value = text.partition(":")
    if kind not in allocation.BUDGET_KINDS or not value.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not uniform:RANK, params:N or bytes:N")
    return kind, int(value)


def run(given: argparse.Namespace, events: Events) -> dict[str, Any]:
    """Load, check and analyse. Raises BadInput naming the field."""
    for name, least in {"samples": 1, "max_length": 2, "batch_size": 1}.items():
        if getattr(given, name) < least:
            raise BadInput(f"--{name.replace('_', '-')}: must be at least {least}.")
    if not (given.model / "config.json").is_file():
        raise BadInput(f"--model: {given.model} is no folder of a model.")
    with named("--data"):
        rows = data.read_rows(given.data)
    with named("--reference"):
        reference = data.read_rows(given.reference) if given.reference else None
    return analysed(given, rows, reference, events)


@contextlib.contextmanager
def named(flag: str) -> Iterator[None]:
    """Turn the library's typed errors into BadInput with the flag: `flag` for what is wrong with the data."""
    try:
        yield
    except allocation.AllocationError as error:
        raise BadInput(f"--{error.field.replace('_', '-')}: {error}") from None
    except data.DataError as error:
        raise BadInput(f"{flag}: {error}") from None


def analysed(given: argparse.Namespace, rows: list[Any], reference: list[Any] | None, events: Events) -> dict[str, Any]:
    import torch

    from training.tars.analysis import AnalysisConfig, analyze
    from training.tars.base_model import load_model, load_tokenizer

    if given.threads:
        torch.set_num_threads(given.threads)
    torch.manual_seed(given.seed)
    tokenizer, model = load_tokenizer(given.model), load_model(given.model)
    names = ("preset", "rank_min", "rank_max", "quantum", "scale", "samples", "max_length", "batch_size", "seed")
    config = AnalysisConfig(*given.budget, **{name: getattr(given, name) for name in names})
    with named("--data"), reporter(events) as progress:
        return analyze(model, tokenizer, rows, reference, config, progress).as_dict()


@contextlib.contextmanager
def reporter(events: Events) -> Iterator[Callable[[int, int], None]]:
    """A progress bar where there is a terminal, events where a file is named."""
    with Progress(*Progress.get_default_columns()[:3], TimeRemainingColumn(), console=Console(stderr=True),
                  disable=not sys.stderr.isatty()) as bar:  # fmt: skip
        task = bar.add_task("Analysing")

        def report(step: int, total: int) -> None:
            bar.update(task, completed=step, total=total)
            events.progress(step, total)

        yield report


def write_atomically(path: Path, analysis: dict[str, Any]) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(analysis, indent=1, allow_nan=False) + "\n")
    os.replace(part, path)


def show(analysis: dict[str, Any], out: Path) -> None:
    """The ranks by kind of module, and the verdict."""
    table = Table("module", "ranks (layer by layer)", title=f"{analysis['parameters']:,} parameters")
    kinds: dict[str, list[int]] = {}
    for module in analysis["modules"]:
        kinds.setdefault(module["name"].rsplit(".", 1)[-1], []).append(module["rank"])
    for kind, ranks in kinds.items():
        table.add_row(kind, " ".join(map(str, ranks)))
    console = Console()
    console.print(table)
    console.print(analysis["verdict_text"])
    console.print(f"Written to {out}", soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
