"""Intake under mutated headers and configurations: no crash, no second of CPU for one case, no 200 MB of memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


@pytest.mark.threat("E3")
def test_no_header_or_configuration_breaks_intake(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    seconds = 600 if pytestconfig.getoption("--soak") else 4
    command = [sys.executable, "-m", "tests.soak.upload_fuzz", str(seconds), "5", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout)
    assert report["taken"] > 0, "some cases must be adapters, or the refusals prove little"
    assert report["slowest_s"] < 1, report
    assert report["peak_mb"] < 200, report
