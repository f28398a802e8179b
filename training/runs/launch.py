"""Queueing of a training run after the check that it will fit."""

from __future__ import annotations

from typing import Any

from adapterhub.core.actor import Actor
from training.models import TrainingRun
from training.planning import preflight


def launch_run(*, by: Actor, anyway: bool = False, **wanted: Any) -> TrainingRun:
    """Plan the run with `TrainingRun.planned` and queue it. Raises Invalid with the field.

    A run that would train on nothing is refused. One that will not fit, by the preflight, is queued only with `anyway`.
    """
    run = TrainingRun.planned(by=by, **wanted)
    preflight.require_trainable(run)
    if not anyway:
        preflight.require(run)
    run.queue(by=by)
    return run
