"""Queue a training run that will fit."""

from __future__ import annotations

from typing import Any

from adapterhub.core.actor import Actor
from training.models import TrainingRun
from training.planning import preflight


def launch_run(*, by: Actor, anyway: bool = False, **wanted: Any) -> TrainingRun:
    """Queue the run that `TrainingRun.planned` makes of the same words. Raises Invalid with the field.

    What the preflight says will not fit is queued only `anyway`.
    """
    run = TrainingRun.planned(by=by, **wanted)
    if not anyway:
        preflight.require(run)
    run.queue(by=by)
    return run
