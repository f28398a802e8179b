"""The `adapterhub` command as a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PROGRAM = [sys.executable, "-c", "from adapterhub.cli import main; main()"]


class Command:
    """Runs the command against one address, with a folder of its own for settings."""

    def __init__(self, url: str, token: str, folder: Path) -> None:
        self.folder = folder
        self.started: list[subprocess.Popen[str]] = []
        environment = {
            "ADAPTERHUB_URL": url,
            "ADAPTERHUB_TOKEN": token,
            "ADAPTERHUB_CONFIG": str(folder / "config.toml"),
            "PYTHONPATH": str(ROOT),
            "COLUMNS": "120",
            "NO_COLOR": "1",
        }
        self.environ = {**os.environ, **environment}

    def __call__(self, *arguments: str, stdin: str = "", **environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*PROGRAM, *arguments],
            env={**self.environ, **environ},
            input=stdin,
            text=True,
            capture_output=True,
            check=False,
            cwd=self.folder,
            timeout=120,
        )

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """The same in the background, for what waits."""
        started = subprocess.Popen(
            [*PROGRAM, *arguments],
            env=self.environ,
            text=True,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self.started.append(started)
        return started

    def end(self) -> None:
        """Nothing of a test that failed goes on."""
        for started in self.started:
            started.kill()
            started.communicate()
