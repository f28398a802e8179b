"""Signal receivers that start training's tasks.

Failures are not caught here; the sweeper repairs a lost signal.
"""

from __future__ import annotations

from typing import Any

from django.dispatch import receiver

from serving_client import telemetry
from training import tasks
from training.domain_signals import dataset_uploaded, job_queued


@receiver(dataset_uploaded)
def check_dataset(dataset: int, **_: Any) -> None:
    """Queue the check of a dataset."""
    tasks.check_dataset_soon(dataset)


@receiver(job_queued)
def wake_worker(kind: str, job: str, traceparent: str, **_: Any) -> None:
    """Queue the task that runs a job, in the trace of the request that created the job."""
    headers = {"traceparent": traceparent} if traceparent else {}
    with telemetry.within(traceparent):
        tasks.work.apply_async((kind, job), headers=headers)
