"""Work that one call does for all who waited: many changes at once publish one table, not one each."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable


class CoalescedRun:
    """`join` returns after a whole run of the work that began later than the call. Raises what the caller's own run
    raised; a run that failed serves nobody else.
    """

    def __init__(self, work: Callable[[], object]) -> None:
        self.work = work
        self.tickets = itertools.count(1)
        self.turn = threading.Lock()
        self.served = 0

    def join(self) -> None:
        ticket = next(self.tickets)
        with self.turn:
            if ticket <= self.served:
                return
            # Whoever drew before the work begins is served by it.
            last = next(self.tickets)
            self.work()
            self.served = last
