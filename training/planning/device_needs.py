"""The memory that a queued run needs on each device, from its base model's configuration alone."""

from __future__ import annotations

from adapterhub.core.errors import Invalid
from training.models.training_run import TrainingRun
from training.planning import estimator_inputs
from training.planning.memory_estimator import estimate


def bytes_on_each_device(run: TrainingRun, *, on_gpu: bool) -> int | None:
    """Return the bytes that the run needs on each of its devices; None if that cannot be estimated.

    It cannot for a base model of an unknown shape, and for a run of an earlier release that lacks a setting. Rows are
    assumed to be as long as max_length, so a preflight check, which measures the data, never finds more.
    """
    try:
        shape = estimator_inputs.shape_of(run.base_model.config)
        plan = estimator_inputs.plan_of(run.method, run.hyperparameters, on_gpu=on_gpu)
    except (Invalid, KeyError):
        return None
    return round(estimate(shape, plan).total)
