"""The processes of a worker's pool end with a worker that is killed."""

from __future__ import annotations

import subprocess
import sys

import psutil
import pytest

from tests.waiting import wait_until

# As Celery does it, without a broker: one signal before the pool is forked, one in each of its processes.
WORKER = """
import os, time
from celery.signals import worker_init, worker_process_init
import adapterhub.celery
worker_init.send(None)
if pid := os.fork():
    print(pid, flush=True)
else:
    worker_process_init.send(None)
time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Only Linux tells a child of its parent's death.")
def test_the_pool_ends_with_its_worker() -> None:
    with subprocess.Popen([sys.executable, "-c", WORKER], stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout is not None
        child = psutil.Process(int(worker.stdout.readline()))
        worker.kill()
    wait_until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, 10, "the end of the pool")
