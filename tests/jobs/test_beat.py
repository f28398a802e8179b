"""Beat's table names tasks; a worker that does not know one drops its message with a line in the log."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
from adapterhub.celery import app
app.loader.import_default_modules()
print(*sorted({entry["task"] for entry in app.conf.beat_schedule.values()} - set(app.tasks)))
"""


@pytest.mark.slow
def test_a_worker_knows_every_task_of_beat() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
