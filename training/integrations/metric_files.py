"""A run's metrics as files to download."""

from __future__ import annotations

from collections.abc import Callable

from django.http import HttpResponse

from training.integrations.metric_formats import MetricFile, as_csv, as_tensorboard, numbers
from training.models import TrainingRun


def csv_of(run: TrainingRun) -> MetricFile:
    """Return the run's metrics as CSV."""
    return as_csv(numbers(run.metrics.values_list("step", "values")), str(run.pk))


def tensorboard_of(run: TrainingRun) -> MetricFile:
    """Return the run's metrics as an event file for TensorBoard."""
    began = (run.started_at or run.created_at).timestamp()
    return as_tensorboard(numbers(run.metrics.values_list("step", "values")), str(run.pk), began)


METRIC_FILES: dict[str, Callable[[TrainingRun], MetricFile]] = {"csv": csv_of, "tensorboard": tensorboard_of}


def download_of(run: TrainingRun, kind: str) -> HttpResponse:
    """Return the run's metrics as a file to download; `kind` is a key of METRIC_FILES."""
    file = METRIC_FILES[kind](run)
    return HttpResponse(
        file.content,
        content_type=file.media_type,
        headers={"Content-Disposition": f'attachment; filename="{file.name}"'},
    )
