"""Ending child processes together with the process that started them, even when that is killed with -9."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable

PR_SET_PDEATHSIG = 1


def die_with_parent(death_signal: signal.Signals) -> Callable[[], None] | None:
    """Return a `preexec_fn` that has the kernel send the signal when the spawning thread ends; None outside Linux.

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
