"""The `adapterhub` command, as it is started in a shell."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

from adapterhub.cli import main

ROOT = Path(__file__).parent.parent.parent
PROGRAM = [sys.executable, "-c", "from adapterhub.cli import main; main()"]


class Command:
    """Runs the command against one address, with a folder of its own for settings."""

    def __init__(self, url: str, token: str, folder: Path) -> None:
        self.folder = folder
        self.started: list[subprocess.Popen[str]] = []
        self.variables = {
            "ADAPTERHUB_URL": url,
            "ADAPTERHUB_TOKEN": token,
            "ADAPTERHUB_CONFIG": str(folder / "config.toml"),
            "PYTHONPATH": str(ROOT),
            "COLUMNS": "120",
            "NO_COLOR": "1",
        }

    def __call__(self, *arguments: str, stdin: str = "", **environ: str) -> subprocess.CompletedProcess[str]:
        """Run it in the test's process, with streams, folder and variables as a process would have them."""
        out, err = Captured(), Captured()
        with contextlib.ExitStack() as stack:
            stack.enter_context(mock.patch.dict(os.environ, {**self.variables, **environ}))
            stack.enter_context(mock.patch.object(sys, "argv", ["adapterhub", *arguments]))
            stack.enter_context(mock.patch.object(sys, "stdin", io.StringIO(stdin)))
            stack.enter_context(contextlib.chdir(self.folder))
            stack.enter_context(contextlib.redirect_stdout(out))
            stack.enter_context(contextlib.redirect_stderr(err))
            ended = stack.enter_context(Ended())
            main()
        return subprocess.CompletedProcess(arguments, ended.code, out.text(), err.text())

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start it as a process in the background, for what waits."""
        started = subprocess.Popen(
            [*PROGRAM, *arguments],
            env={**os.environ, **self.variables},
            text=True,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self.started.append(started)
        return started

    def run(self, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run it as a process, for what depends on one."""
        environment = {**os.environ, **self.variables, **environ}
        command = [*PROGRAM, *arguments]
        return subprocess.run(command, env=environment, text=True, capture_output=True, check=False, cwd=self.folder)

    def end(self) -> None:
        """Nothing of a test that failed goes on."""
        for started in self.started:
            started.kill()
            started.communicate()


class Captured(io.TextIOWrapper):
    """A stream that takes text and, in its buffer, bytes."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), encoding="utf-8", write_through=True)

    def text(self) -> str:
        content: bytes = self.buffer.getvalue()  # type: ignore[attr-defined]
        return content.decode()


class Ended(contextlib.AbstractContextManager["Ended"]):
    """The exit code of what ends by SystemExit inside."""

    code = 0

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> bool:
        if isinstance(error, SystemExit):
            self.code = error.code if isinstance(error.code, int) else int(error.code is not None)
            return True
        return False
