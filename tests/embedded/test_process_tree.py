"""The supervisor as a program of its own: its lines, its signals, and what is left after kill -9."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from adapterhub.embedded.layout import database_url
from adapterhub.embedded.logs import Terminal
from adapterhub.embedded.process_list import Plan
from adapterhub.embedded.supervisor import Supervisor
from tests.embedded.fakes import alive, free_port, options
from tests.tools import requires
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys
from pathlib import Path
from adapterhub.embedded import __main__ as command
from tests.embedded import fakes
home, port = Path(sys.argv[1]), int(sys.argv[2])
command.full_plan = lambda options: fakes.plan(port)
from dataclasses import replace
sys.exit(command.run(replace(fakes.options(home), port=port), services_only=False))
"""
# Only Linux tells a child that its parent died.
pytestmark = requires("linux")


@contextmanager
def _hub(home: Path) -> Iterator[subprocess.Popen[str]]:
    port = free_port()
    command = [sys.executable, "-c", PROGRAM, str(home), str(port)]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
    ) as hub:
        try:
            assert hub.stdout is not None
            assert hub.stdout.readline() == f"ready http://127.0.0.1:{port}\n"
            yield hub
        finally:
            hub.kill()


def _descendants(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task").glob("*/children")
    pids = [int(child) for threads in children for child in threads.read_text().split()]
    return pids + [deeper for child in pids for deeper in _descendants(child)]


@pytest.mark.slow
def test_kill_9_leaves_no_process_and_the_next_start_works(home: Path) -> None:
    with _hub(home) as hub:
        family = [pid for pid in _descendants(hub.pid) if not _is_grandchild(home, pid)]
        assert len(family) >= 4
        hub.kill()
        wait_until(lambda: not any(map(alive, family)), 5, what="the end of all children")
    with Supervisor(options(home), Plan(), Terminal(quiet=True)), psycopg.connect(database_url(home)) as session:
        assert session.execute("SELECT 1").fetchone() == (1,)
    os.kill(_grandchild(home), signal.SIGKILL)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.slow
def test_a_signal_stops_everything_at_once_and_counts_as_success(home: Path, number: signal.Signals) -> None:
    with _hub(home) as hub:
        family = _descendants(hub.pid)
        hub.send_signal(number)
        assert hub.wait(15) == 0
        wait_until(lambda: not any(map(alive, family)), 5, what="the end of all children")
        assert hub.stdout is not None
        assert hub.stdout.read() == "", "exactly one line on stdout"


@pytest.mark.slow
def test_the_stop_command_waits_for_the_end(home: Path) -> None:
    with _hub(home) as hub:
        family = _descendants(hub.pid)
        command = [sys.executable, "-m", "adapterhub.embedded", "stop"]
        subprocess.run(command, env=os.environ | {"ADAPTERHUB_HOME": str(home)}, check=True, timeout=30)
        wait_until(lambda: not any(map(alive, family)), 5, what="the end of all children")
        assert hub.wait(5) == 0


def _grandchild(home: Path) -> int:
    last = [line for line in (home / "logs" / "worker.log").read_text().splitlines() if line.startswith("child ")][-1]
    return int(last.split()[1])


def _is_grandchild(home: Path, pid: int) -> bool:
    """The fake worker's child does not ask to die with its parent; Celery's pool does, in adapterhub/celery.py."""
    return pid == _grandchild(home)
