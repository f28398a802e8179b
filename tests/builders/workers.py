"""Workers as processes of their own, which a test may stop and kill."""

from __future__ import annotations

import os
import subprocess
import sys

from django.db import connections

Started = list[subprocess.Popen[bytes]]


def worker() -> subprocess.Popen[bytes]:
    database = connections["default"].settings_dict["NAME"]
    command = [sys.executable, "-W", "ignore", "-m", "tests.training.worker", database]
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))})
