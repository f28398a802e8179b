"""Execution of jobs on the GPU worker: claims a job, runs its child process and publishes the result."""

from __future__ import annotations

import contextlib
import logging
import shutil
import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from django.conf import settings
from django.db import OperationalError, close_old_connections

from adapterhub import tracing
from adapterhub.artifacts import ArtifactError
from adapterhub.core.errors import DomainError
from adapterhub.jobs.child import Child, Event
from adapterhub.jobs.models import JobStatus, StaleAttempt
from training import hardware
from training.models import Device
from training.models.job import GpuJob
from training.worker import queue

POLL_S = 0.5
# Seconds between checks for a cancellation: heartbeats are too rare to free the device within 10 s.
ASK_S = 1.0
# Seconds between reports of the device, well below the time after which it counts as gone.
REPORT_S = 60.0
# Events of earlier attempts that are stored again after a restart; storing them is idempotent.
REPLAYED = ("metrics", "evaluation", "answers")
SILENT: Event = {"code": "internal", "message": "The process ended without a message; see its log."}
log = logging.getLogger(__name__)


def work() -> None:
    """Run the next queued job that fits this host, and wait until it ends; no effect if there is none."""
    job = queue.claim()
    if job is None:
        return
    try:
        execute(job)
    except StaleAttempt:
        log.warning("%s went to another attempt; this one wrote nothing more.", job)


def execute(job: GpuJob) -> None:
    """Run the job's child process and end the job by its result; an error ends it as failed, with the reason.

    Raises StaleAttempt if another attempt has the job, and raises unexpected errors again after recording them.
    """
    job.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        arguments = job.child_arguments(job.folder)
        outcome, message = supervise(job, arguments)
        finish(job, outcome, message)
    except StaleAttempt:
        raise
    except (DomainError, ArtifactError) as error:
        job.failed("bad_input", str(error))
    except OSError as error:
        job.failed("no_space" if error.errno == 28 else "internal", str(error))
    except Exception as error:
        # The process boundary: the row must say what happened, and the log must have the traceback.
        job.failed("internal", f"{type(error).__name__}: {error}")
        raise


def supervise(job: GpuJob, arguments: list[str]) -> tuple[str, str]:
    """Run the child process with heartbeats until it ends; return (outcome, message).

    The outcome is succeeded, cancelled, killed (by SIGKILL, without an error reported), or the child's error code; only
    with the last the message is not "". Raises StaleAttempt if the lease has passed to a later attempt; the child is
    killed then, too.
    """
    parent = tracing.nearest(job.traceparent)
    child = Child(arguments, job.folder / "events.jsonl", job.folder / "log.txt", parent)
    with killed_at_the_end(child):
        watch = Watch(job, child, job.log_start())
        watch.recall()
        while (status := child.wait(POLL_S)) is None:
            with database_may_be_away():
                watch.listen()
                watch.keep_in_touch()
            if watch.is_due("ask", ASK_S) and asked_to_stop(job):
                child.stop(settings.CANCEL_GRACE_S)
                watch.listen()
                return "cancelled", ""
        watch.listen()
    error = watch.error
    if status == -signal.SIGKILL and error is SILENT:
        return "killed", ""
    return ("succeeded", "") if status == 0 else (str(error["code"]), str(error["message"]))


@dataclass
class Watch:
    """A worker's supervision of a child process: applies its events, stores its log, and sends heartbeats."""

    job: GpuJob
    child: Child
    log_read: int
    error: Event = field(default_factory=lambda: SILENT)
    due: dict[str, float] = field(default_factory=dict)

    def is_due(self, event: str, seconds: float) -> bool:
        """Return True on the first call for `event`, and then at most once every `seconds`."""
        now = time.monotonic()
        if now < self.due.get(event, 0):
            return False
        self.due[event] = now + seconds
        return True

    def recall(self) -> None:
        """Apply the metrics, evaluations and answers that an earlier attempt wrote, in case they were not stored."""
        for event in self.child.earlier_events():
            if event["kind"] in REPLAYED:
                self.job.note(event)

    def listen(self) -> None:
        """Apply the child's new events, remember its latest error, and store what was added to its log.

        Raises StaleAttempt if the lease has passed to a later attempt.
        """
        for event in self.child.new_events():
            self.error = event if event["kind"] == "error" else self.error
            self.job.note(event)
        while (read := self.job.keep_log(self.log_read)) > self.log_read:
            self.log_read = read

    def keep_in_touch(self) -> None:
        """Renew the job's lease if HEARTBEAT_S seconds have passed since the last time.

        Raises StaleAttempt if the lease has passed to a later attempt.
        """
        if self.is_due("beat", settings.HEARTBEAT_S):
            self.job.heartbeat()


@contextlib.contextmanager
def killed_at_the_end(child: Child) -> Iterator[None]:
    """Kill the child process at the end of the block, also after an error, so that the device is free."""
    try:
        yield
    finally:
        child.kill()


@contextlib.contextmanager
def database_may_be_away() -> Iterator[None]:
    """Log a database connection error in the block and go on; the next round tries again, while the lease lasts."""
    try:
        yield
    except OperationalError as error:
        log.warning("The database does not respond: %s", error)
        # The connection would stay broken when the database is back.
        close_old_connections()


def asked_to_stop(job: GpuJob) -> bool:
    """Return True if the job was asked to stop; False if the database does not respond."""
    with database_may_be_away():
        return type(job).objects.filter(pk=job.pk, status=JobStatus.STOPPING).exists()
    return False


def report_devices() -> None:
    """Record this host's devices in the database, for preflights."""
    Device.report(socket.gethostname(), hardware.detect(settings.WORK_DIR))


def finish(job: GpuJob, outcome: str, message: str) -> None:
    """End the job by the outcome of its child process, as `supervise` returns it.

    After `succeeded` the result is published and the output folder deleted, after `cancelled` the job ends, and after
    `killed` it is queued again or, after its last attempt, fails. Any other outcome fails it with that as its code.
    Raises StaleAttempt if the lease has passed to a later attempt.
    """
    if outcome == "succeeded":
        job.succeeded(job.folder)
        if job.status == JobStatus.SUCCEEDED:
            clear(job.folder)
    elif outcome == "cancelled":
        job.cancelled()
    elif outcome == "killed":
        job.give_back()
    else:
        job.failed(outcome, message)


def clear(folder: Path) -> None:
    """Delete the output folder of a succeeded job, whose output is in the store; its log and events stay."""
    shutil.rmtree(folder / "output", ignore_errors=True)
