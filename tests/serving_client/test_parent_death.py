"""A child ends with its parent, also with one that died before the child could ask for it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import psutil
import pytest

from serving_client.parent_death import die_with_parent
from tests.waiting import wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Only Linux tells a child of its parent's death.")

SLEEP, TRUE = "/bin/sleep", "/bin/true"

PARENT = """
import signal, subprocess, sys
from serving_client.parent_death import die_with_parent
child = subprocess.Popen(["/bin/sleep", "60"], preexec_fn=die_with_parent(signal.SIGKILL))
print(child.pid, flush=True)
child.wait()
"""


def test_a_child_ends_with_a_killed_parent() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    wait_until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, 5, "the end of the child")


def test_a_child_whose_parent_is_gone_already_ends_at_once() -> None:
    late = die_with_parent(signal.SIGKILL, parent=os.getppid())
    assert subprocess.run([SLEEP, "60"], preexec_fn=late, timeout=10, check=False).returncode == 1


def test_a_child_whose_parent_lives_goes_on() -> None:
    assert subprocess.run([TRUE], preexec_fn=die_with_parent(signal.SIGKILL), check=False).returncode == 0
