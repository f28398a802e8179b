"""The child process that does a job's heavy work, and the file through which it reports."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from serving_client import telemetry
from serving_client.parent_death import die_with_parent

Event = dict[str, Any]
# The exit status of a child whose input can never give a result; the last line of its log says why.
REFUSED = 3
# The log of a job is what it says itself: notices of its libraries to their developers are left out, unless the
# operator sets these otherwise.
QUIET = {"PYTHONWARNINGS": "ignore", "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}


def end_predecessor(pid_file: Path) -> None:
    """Kill the child of an earlier attempt whose process id is in the file, if it still runs in the same folder.

    It may live on under a stopped worker after its lease was lost, and two children must not share a folder.
    """
    pid = pid_file.read_text() if pid_file.is_file() else ""
    command = Path("/proc", pid, "cmdline")
    with contextlib.suppress(OSError):
        if pid and str(pid_file.parent).encode() in command.read_bytes():
            os.killpg(int(pid), signal.SIGKILL)


class Child:
    """A child process `python -m MODULE ...` in its own process group, which reports events as JSON lines in a file.

    `arguments` are the module and its arguments; its output is appended to `log`. Starting it ends the child of an
    earlier attempt in the same folder. With a collector, it runs in a span of the trace `traceparent`.
    """

    def __init__(self, arguments: list[str], events: Path, log: Path, traceparent: str = "") -> None:
        self.events = events
        self.events.touch()
        # A child that inspects foreign files gets no traceparent: its resource limits leave no room for tracing.
        if traceparent and telemetry.is_on():
            arguments = ["adapterhub.jobs.traced", traceparent, *arguments]
        pid_file = events.with_name("child.pid")
        end_predecessor(pid_file)
        self.position = self.events.stat().st_size
        with log.open("ab") as output:
            self.process = subprocess.Popen(  # noqa: S603 - argv list, no shell
                [sys.executable, "-m", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                # A child that outlived its worker would keep the device.
                preexec_fn=die_with_parent(signal.SIGKILL),
                env={
                    **QUIET,
                    **os.environ,
                    "TOKENIZERS_PARALLELISM": "false",
                    "HF_HUB_OFFLINE": "1",
                    "TRACEPARENT": traceparent,
                },
            )
        try:
            pid_file.write_text(str(self.process.pid))
        except OSError:
            # On a full disk nobody would know of the child.
            self.kill()
            raise

    def wait(self, seconds: float) -> int | None:
        """Wait up to `seconds`; return the exit status, or None while it runs."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def earlier_events(self) -> Iterator[Event]:
        """Yield the events that earlier attempts wrote, which a worker that was killed may not have read."""
        with self.events.open("rb") as stream:
            for line in stream.read(self.position).splitlines():
                # The last line of a child that was killed may be cut.
                with contextlib.suppress(ValueError):
                    yield json.loads(line)

    def new_events(self) -> Iterator[Event]:
        """Yield the events of complete lines since the last call.

        One whose handling raised an exception is yielded again.
        """
        with self.events.open("rb") as stream:
            stream.seek(self.position)
            for line in stream:
                if not line.endswith(b"\n"):
                    return
                yield json.loads(line)
                self.position += len(line)

    def stop(self, grace_s: float) -> None:
        """Ask the child to save and end (SIGTERM); kill its process group if it has not ended within `grace_s`."""
        self.process.send_signal(signal.SIGTERM)
        if self.wait(grace_s) is None:
            self.kill()

    def kill(self) -> None:
        """Kill the process group and wait for its end; no effect after it."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
