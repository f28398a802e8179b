"""Queueing of a training run after a check that it will fit."""

from __future__ import annotations

from typing import Any

from adapterhub.core.actor import Actor
from training.models import TrainingRun
from training.planning import preflight


def launch_run(*, by: Actor, anyway: bool = False, **wanted: Any) -> TrainingRun:
    """Plan a run with `TrainingRun.planned`, check it, queue it and return it.

    `wanted` are the arguments of `planned`. Raises Invalid that names the field, also for a run that would train on
    nothing and, unless `anyway`, for one that the preflight expects not to fit; Conflict if the queue is full.
    """
    run = TrainingRun.planned(by=by, **wanted)
    preflight.require_trainable(run)
    if not anyway:
        preflight.require(run)
    run.queue(by=by)
    return run
