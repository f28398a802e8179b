"""Children that die with the process that started them, also when that one is killed with -9."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable

PR_SET_PDEATHSIG = 1


def die_with_parent(death_signal: signal.Signals) -> Callable[[], None] | None:
    """A `preexec_fn` after which the kernel sends the signal once the spawning thread is gone; None outside Linux.

    The kernel watches the thread, not the process: spawn only from threads that outlive the child.
    """
    if sys.platform != "linux":
        return None
    # Loaded before the fork: after it, another thread may hold the loader's lock for ever.
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    parent = os.getpid()

    def arm() -> None:
        prctl(PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)

    return arm
