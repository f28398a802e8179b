"""Queueing of a training run after the check that it will fit."""

from __future__ import annotations

from typing import Any

from adapterhub.core.actor import Actor
from training.models import TrainingRun
from training.planning import preflight


def launch_run(*, by: Actor, anyway: bool = False, **wanted: Any) -> TrainingRun:
    """Plan the run with `TrainingRun.planned`, queue it and return it.

    Raises Invalid with the field, also for a run that would train on nothing, or, unless `anyway`, for one that the
    preflight says will not fit; Conflict if the queue is full.
    """
    run = TrainingRun.planned(by=by, **wanted)
    preflight.require_trainable(run)
    if not anyway:
        preflight.require(run)
    run.queue(by=by)
    return run
