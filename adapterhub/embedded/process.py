"""A child process with its own session, its log lines and its orderly end."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from adapterhub.embedded.logs import LineSink
from adapterhub.embedded.os_account import Account
from adapterhub.embedded.probes import LogProbe, Probe
from serving_client.parent_death import die_with_parent

POLL_S = 0.05
TAIL_LINES = 20


@dataclass(frozen=True)
class ProcessSpec:
    """The command, environment and readiness probe of a process to start.

    `env` is the whole environment of the child. `stop_signal` asks it to end; the kernel sends `death_signal` when the
    thread that started it ends. `account` is the account that runs it, None for this process' own; `inherited` are the
    file descriptors that it gets.
    """

    name: str
    argv: Sequence[str]
    env: Mapping[str, str]
    probe: Probe | LogProbe
    cwd: Path | None = None
    stop_signal: signal.Signals = signal.SIGTERM
    death_signal: signal.Signals = signal.SIGKILL
    account: Account | None = None
    inherited: tuple[int, ...] = field(default=())


class Child:
    """A running process of a spec, whose log lines go to the sinks.

    Start it from a thread that outlives it: it ends with that thread.
    """

    def __init__(self, spec: ProcessSpec, *sinks: LineSink) -> None:
        self.spec = spec
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._sinks = sinks
        self._heard = threading.Event()
        self.started_at = time.monotonic()
        self._process = _spawn(spec)
        self._reader = threading.Thread(target=self._read, name=f"log of {spec.name}", daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """Return the process id."""
        return self._process.pid

    @property
    def age_s(self) -> float:
        """Return the seconds since the start."""
        return time.monotonic() - self.started_at

    def answers(self) -> bool:
        """Return True if the spec's probe finds the process ready."""
        probe = self.spec.probe
        return self._heard.is_set() if isinstance(probe, LogProbe) else probe.answers()

    def exit_code(self) -> int | None:
        """Return the exit code; None while the child runs. After its end, kills what is left of its process group."""
        if self._process.returncode is None and _has_ended(self.pid):
            # Before the pid is reaped, no other process group can have its number.
            _signal_group(self.pid, signal.SIGKILL)
            self._process.wait()
        return self._process.returncode

    def ask_to_stop(self) -> None:
        """Send the stop signal to the child alone, not its group, so that it can end its own workers first."""
        if self.exit_code() is None:
            self._process.send_signal(self.spec.stop_signal)

    def wait_until(self, deadline: float) -> bool:
        """Wait until `deadline` (of time.monotonic()); return True if the child has ended."""
        while self.exit_code() is None:
            if time.monotonic() >= deadline:
                return False
            time.sleep(POLL_S)
        return True

    def kill(self) -> None:
        """Kill the whole process group and wait for the child's end; no effect after it."""
        if self.exit_code() is None:
            _signal_group(self.pid, signal.SIGKILL)
            self._process.wait()

    def last_words(self) -> str:
        """Return the last two lines of the log, joined, once the rest was read; `it wrote nothing` without any."""
        self._reader.join(timeout=1.0)
        lines = [line.strip() for line in self.tail if line.strip()]
        return " / ".join(lines[-2:]) or "it wrote nothing"

    def _read(self) -> None:
        assert self._process.stdout is not None  # noqa: S101 - opened as a pipe, said for the type checker
        with self._process.stdout as lines:
            for line in lines:
                self._hear(line.rstrip())

    def _hear(self, line: str) -> None:
        self.tail.append(line)
        if isinstance(self.spec.probe, LogProbe) and self.spec.probe.text in line:
            self._heard.set()
        for sink in self._sinks:
            sink(line)


def stop_all(children: Sequence[Child], grace_s: float) -> None:
    """Ask all children to stop at once, and kill those that still run after `grace_s`."""
    for child in children:
        child.ask_to_stop()
    deadline = time.monotonic() + grace_s
    for child in children:
        if not child.wait_until(deadline):
            child.kill()


def _spawn(spec: ProcessSpec) -> subprocess.Popen[str]:
    return subprocess.Popen(  # noqa: S603 - the argument vectors of our own table, no shell
        list(spec.argv),
        env=dict(spec.env),
        cwd=spec.cwd,
        user=spec.account.uid if spec.account else None,
        group=spec.account.gid if spec.account else None,
        extra_groups=[] if spec.account else None,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
        pass_fds=spec.inherited,
        preexec_fn=die_with_parent(spec.death_signal),
    )


def _has_ended(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _signal_group(pid: int, number: signal.Signals) -> None:
    try:
        os.killpg(pid, number)
    except (ProcessLookupError, PermissionError):
        return  # nobody is left; macOS says EPERM when only the zombie leader is
