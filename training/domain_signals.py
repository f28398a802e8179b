"""Signals that training's models send after a commit; `receivers.py` connects them to the tasks."""

from __future__ import annotations

from django.dispatch import Signal

# `dataset`: the key of a dataset whose upload a worker has to check.
dataset_uploaded = Signal()
# `kind`, `job`, `traceparent`: a job that waits for a worker, and the trace of the request that asked for it.
job_queued = Signal()
