"""A process that is restarted when it dies."""

from __future__ import annotations

import time

from adapterhub.embedded.logs import LineSink, Terminal
from adapterhub.embedded.process import Child, ProcessSpec

LONGEST_BACKOFF_S = 30.0
STEADY_S = 60.0
DEATHS_BEFORE_READY = 5


class Supervised:
    """A process that is restarted 1, 2, 4 ... 30 s after it ended; running for 60 s resets that delay."""

    def __init__(self, spec: ProcessSpec, terminal: Terminal, *sinks: LineSink) -> None:
        self.spec = spec
        self.deaths = 0
        self.ready = False
        self.was_ready = False
        self._terminal = terminal
        self._sinks = sinks
        self._restart_at = 0.0
        self.child = Child(spec, *sinks)

    @property
    def gave_up(self) -> bool:
        """Return True if the process ended DEATHS_BEFORE_READY times without being ready: restarts will not help."""
        return not self.was_ready and self.deaths >= DEATHS_BEFORE_READY

    def check(self) -> None:
        """Record and print that the process is ready or has ended, and restart it when its delay has passed."""
        if self.child.exit_code() is not None:
            self._bury_or_restart()
        elif not self.ready and self.child.answers():
            self.ready = self.was_ready = True
            self._terminal.say(f"{self.spec.name} ready ({self.child.age_s:.1f} s)")

    def _bury_or_restart(self) -> None:
        now = time.monotonic()
        if not self._restart_at:
            self.deaths = 1 if self.child.age_s > STEADY_S else self.deaths + 1
            wait_s = min(2.0 ** (self.deaths - 1), LONGEST_BACKOFF_S)
            self.ready, self._restart_at = False, now + wait_s
            self._terminal.say(f"{self.spec.name} ended ({self.child.exit_code()}); again in {wait_s:.0f} s")
        elif now >= self._restart_at:
            self.child = Child(self.spec, *self._sinks)
            self._restart_at = 0.0
