"""Ending child processes together with the process that started them, even when that is killed with -9."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable

PR_SET_PDEATHSIG = 1


def die_with_parent(death_signal: signal.Signals, *, parent: int | None = None) -> Callable[[], None] | None:
    """Return a function for the child, such as a `preexec_fn`, that binds its life to its parent's; None outside Linux.

    Called there, it has the kernel send the signal when the thread that started the child ends, and ends the child at
    once if `parent`, by default the process that calls this, is gone already. The kernel watches the thread, not the
    process: start children only from threads that outlive them.
    """
    if sys.platform != "linux":
        return None
    # Loaded before the fork: after it, another thread may hold the loader's lock for ever.
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    expected = os.getpid() if parent is None else parent

    def arm() -> None:
        prctl(PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0)
        if os.getppid() != expected:
            os._exit(1)

    return arm
