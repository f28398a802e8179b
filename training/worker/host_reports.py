"""Work that each GPU worker does for its own host beside jobs: it reports the devices and deletes old data.

A task on the workers' shared queue would reach any one of them, and a busy one would not take it.
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
    """A worker thread that reports its host every REPORT_S seconds, also while a job runs, and deletes old data."""

    def __init__(self) -> None:
        super().__init__(name="host reports", daemon=True)
        self._ended = threading.Event()

    def run(self) -> None:
        """Report at once and then every REPORT_S seconds.

        Every CLEAN_EVERY reports also delete old checkpoints and datasets.
        """
        count = 0
        while True:
            report(cleans=count % CLEAN_EVERY == 0)
            count += 1
            if self._ended.wait(runner.REPORT_S):
                return

    def end(self) -> None:
        """Stop the thread, and wait until a report that is being sent is done."""
        self._ended.set()
        self.join()


def report(*, cleans: bool) -> None:
    """Record the host's devices; with `cleans` also delete expired checkpoints and erased datasets.

    Errors are only logged. The thread's database connection is closed.
    """
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
