"""Duties of each GPU worker for its own host beside its jobs: it reports its devices and deletes old checkpoints.

A task on the workers' shared queue would come to any one of them, and a busy one would not take it.
"""

from __future__ import annotations

import logging
import threading

from django.db import connection

from training.models import erasure
from training.worker import checkpoint_retention, runner

CLEAN_EVERY = 60  # reports
log = logging.getLogger(__name__)


class HostReports(threading.Thread):
    """A thread of the worker that reports its host every REPORT_S, whether the worker is idle or busy."""

    def __init__(self) -> None:
        super().__init__(name="host reports", daemon=True)
        self._ended = threading.Event()

    def run(self) -> None:
        """Report at once and then every REPORT_S; old checkpoints and erased datasets go every CLEAN_EVERY reports."""
        count = 0
        while True:
            report(cleans=count % CLEAN_EVERY == 0)
            count += 1
            if self._ended.wait(runner.REPORT_S):
                return

    def end(self) -> None:
        """End the thread after its present report."""
        self._ended.set()
        self.join()


def report(*, cleans: bool) -> None:
    """Report the host's devices, and delete what this host no longer keeps; an error is logged and tried again."""
    try:
        runner.report_devices()
        if cleans:
            checkpoint_retention.drop_old_checkpoints()
            erasure.drop_erased()
    except Exception:
        log.exception("The devices of this host were not reported; the next report follows.")
    finally:
        # The worker forks processes while this thread is idle: they must not share its connection.
        connection.close()
