"""Coalescing of concurrent calls: one run does the work for all that wait, so many changes publish one table."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable


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
        """Run the work, or return once a run that began after this call has ended."""
        ticket = next(self.tickets)
        with self.turn:
            if ticket <= self.served:
                return
            # This run serves every caller whose ticket was drawn before the work begins.
            last = next(self.tickets)
            self.work()
            self.served = last
