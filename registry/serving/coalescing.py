"""Coalescing of concurrent calls: one run does the work for all that wait, so many changes publish one table."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable

# A caller whose change is committed waits no longer for runs of others that hang.
PATIENCE_S = 3.0


class StillRunning(Exception):
    """Raised when another run of the work has not ended within PATIENCE_S seconds."""


class CoalescedRun:
    """Work that concurrent callers share.

    `join` returns after a complete run of the work that began after the call. It raises the error of a run that the
    caller itself made; a failed run counts for no other caller.
    """

    def __init__(self, work: Callable[[], object]) -> None:
        self.work = work
        self.tickets = itertools.count(1)
        self.turn = threading.Lock()
        self.served = 0

    def join(self) -> None:
        """Run the work, or return once a run that began after this call has ended.

        Raises StillRunning if another run does not end in time, and the error of the work if this caller ran it.
        """
        ticket = next(self.tickets)
        if not self.turn.acquire(timeout=PATIENCE_S):
            raise StillRunning(f"Another publication has not ended within {PATIENCE_S:.0f} s")
        try:
            if ticket <= self.served:
                return
            # This run serves every caller whose ticket was drawn before the work begins.
            last = next(self.tickets)
            self.work()
            self.served = last
        finally:
            self.turn.release()
