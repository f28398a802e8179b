"""Process entry point shared by the recipes: reads a run file, handles SIGTERM and returns an exit status."""

from __future__ import annotations

import math
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from training.lm.error_reporting import guarded, last
from training.lm.events import Events
from training.lm.lean_import import leave_out_bitsandbytes
from training.recipes import run_file
from training.recipes.peak_memory import out_of_memory
from training.recipes.run_file import Run, RunFile

CANCELLED = 143
LOG_EVERY_S = 10.0
# Errors end the log by themselves.
UNLOGGED = {"answers", "error"}
File = TypeVar("File", bound=RunFile)


class Cancel:
    """Handler of SIGTERM, installed when it is created; it ends the process with the status CANCELLED.

    Outside of a training (`training` is False) it does so at once; during one it sets `requested`, and the process ends
    after the next step, with a checkpoint.
    """

    def __init__(self) -> None:
        self.requested = self.training = False
        signal.signal(signal.SIGTERM, self.request)

    def request(self, *_: Any) -> None:
        """Remember the request, as the signal's handler; exit at once with status CANCELLED unless a training runs."""
        self.requested = True
        if not self.training:
            sys.exit(CANCELLED)

    def leave_if_requested(self) -> None:
        """Declare the training as ended; exit with status CANCELLED if SIGTERM arrived during it.

        By now the training has written its last checkpoint.
        """
        self.training = False
        if self.requested:
            sys.exit(CANCELLED)


class RunEvents(Events):
    """Events of a run with several processes: only the first reports progress, and each reports its own errors.

    An out-of-memory error is reported with the run's own figures. Each event is also printed as a line of the run's
    log, but progress only once in LOG_EVERY_S seconds.
    """

    silent = False
    run: Run | None = None
    logged_at = -math.inf

    def write(self, kind: str, **fields: Any) -> None:
        """Append an event and print it as `log` does; a process that is `silent` handles only errors.

        The message of an error with the code gpu_oom is replaced by one with the run's figures and the cheapest change.
        """
        if self.run and fields.get("code") == "gpu_oom":
            fields["message"] = out_of_memory(self.run.hyperparameters, Path(sys.argv[0]).stem)
        if kind == "error" or not self.silent:
            super().write(kind, **fields)
            self.log(kind, fields)

    def log(self, kind: str, fields: dict[str, Any]) -> None:
        """Print the event to standard output, as a line of the log on the run's page.

        Nothing is printed for the kinds in UNLOGGED, without an event file, and for progress within LOG_EVERY_S seconds
        of the last progress line.
        """
        at = time.monotonic()
        if kind in UNLOGGED or self.path is None or (kind == "progress" and at - self.logged_at < LOG_EVERY_S):
            return
        self.logged_at = at if kind == "progress" else self.logged_at
        words = fields["message"] if "message" in fields else " ".join(map(in_words, fields.items()))
        sys.stdout.write(f"{time.strftime('%H:%M:%S', time.gmtime())} UTC {kind}: {words}\n")
        sys.stdout.flush()


def in_words(field: tuple[str, Any]) -> str:
    """Return a field (name, value) of an event as `name value`, a float with four significant digits."""
    name, value = field
    return f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"


def see_one_gpu() -> None:
    """Hide all GPUs but the first from torch, which must not be loaded yet, because the trainer refuses several."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0")
    os.environ["CUDA_VISIBLE_DEVICES"] = visible.split(",")[0]


Train = Callable[[Run, RunEvents, Cancel], None]


def program(arguments: list[str], train: Train, *, uses_bitsandbytes: bool = False) -> int:
    """Call `train` with the run file at the path `arguments[0]`; return the exit status.

    It is 0, 2 for bad input, and 1 for any other error, which is reported on standard error and as an event. SIGTERM
    ends the process with the status CANCELLED, as `Cancel` says. One of several processes is ended here with its
    status. bitsandbytes is hidden from the process unless `uses_bitsandbytes` or the base model is quantised.
    """
    cancel, events = Cancel(), RunEvents(None)

    def work() -> None:
        record = run_file.read_record(Path(arguments[0]))
        events.path = run_file.events_path(record)
        events.run = Run.read(record)
        if events.run.devices == 1:
            see_one_gpu()
        if not uses_bitsandbytes:
            leave_out_bitsandbytes(events.run.base_model)
        train(events.run, events, cancel)

    return last(guarded(events, work))


def measure(arguments: list[str], kind: type[File], work: Callable[[File, Events], None]) -> int:
    """Call `work(file, events)` with the job file at the path `arguments[0]`; return the exit status.

    It is 0, 2 for bad input, and 1 for any other error, which is reported on standard error and as an event. `kind` is
    the class by which the file is read.
    """
    events = Events(None)

    def read_and_work() -> None:
        record = run_file.read_record(Path(arguments[0]))
        events.path = run_file.events_path(record)
        file = kind.read(record)
        leave_out_bitsandbytes(file.base_model)
        work(file, events)

    return guarded(events, read_and_work)
