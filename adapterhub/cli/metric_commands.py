"""The command that takes a run's metrics to other programs."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from adapterhub.cli.exit_codes import Ended, Exit
from adapterhub.cli.session import AsJson, hub, say
from adapterhub.cli.wandb_run import write_offline
from adapterhub.client import calls
from adapterhub.client.rest_types import Json, TrainingRun


class Kind(StrEnum):
    """The programs for which metrics can be written."""

    CSV = "csv"
    TENSORBOARD = "tensorboard"
    WANDB = "wandb"


def metrics(
    run: Annotated[str, typer.Argument(help="Id of a training run.")],
    to: Annotated[Kind, typer.Option(help="csv, tensorboard, or wandb: an offline run, for `wandb sync`.")] = Kind.CSV,
    out: Annotated[Path, typer.Option(help="Folder to write into.")] = Path(),
    as_json: AsJson = False,
) -> None:
    """Write a run's metrics as a file that another program reads; wandb needs that package."""
    out.mkdir(parents=True, exist_ok=True)
    with hub() as api:
        if to is Kind.WANDB:
            written = offline(api.send(calls.training_run(run)), api.send(calls.run_metrics(run)), out)
        else:
            written = out / (f"{run}.csv" if to is Kind.CSV else f"events.out.tfevents.0.adapterhub.{run}")
            written.write_bytes(api.send(calls.metric_file(run, to)))
    say({"written": str(written)}, str(written), as_json)


def offline(run: TrainingRun, steps: list[Json], folder: Path) -> Path:
    """Write the run as an offline run of Weights & Biases below the folder; return its path.

    Raises Ended without the package wandb.
    """
    try:
        return write_offline(dict(run), steps, folder)
    except ModuleNotFoundError:
        raise Ended("--to wandb needs the package wandb: pip install wandb", Exit.USAGE) from None
