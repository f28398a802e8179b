"""A run of tests always comes to an end: a worker that dies and a test that hangs are named, and the run fails."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DIES = "import os\n\ndef test_that_takes_its_worker_along():\n    os._exit(7)\n"
HANGS = "import threading\n\ndef test_that_never_ends():\n    threading.Event().wait()\n"


@pytest.mark.parametrize(
    ("text", "options", "fragments"),
    [
        (DIES, ["-n", "1"], ["crashed while running", "test_that_takes_its_worker_along"]),
        (HANGS, ["-n", "0", "--timeout", "1"], ["Timeout (>1.0s) from pytest-timeout", "test_that_never_ends"]),
    ],
    ids=["a worker dies", "a test hangs"],
)
@pytest.mark.slow
def test_it_is_named_and_the_run_fails(tmp_path: Path, text: str, options: list[str], fragments: list[str]) -> None:
    file = tmp_path / "test_example.py"
    file.write_text(text)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-c",
        str(ROOT / "pyproject.toml"),
        "--rootdir",
        str(tmp_path),
        "-p",
        "no:cacheprovider",
        "-p",
        "no:django",
        *options,
        str(file),
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1, done.stdout
    assert all(part in done.stdout for part in fragments), done.stdout
