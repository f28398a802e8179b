"""An embedded engine in a process of its own, which may be killed and started again on the same port."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from serving_client import EngineClient, EngineUnreachable
from tests.builders.ports import free_ports
from tests.waiting import wait_until

START_S = 120.0


class EngineProcess:
    """One replica; `options` are those of its command line."""

    def __init__(self, model: Path, *options: str) -> None:
        (port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{port}"
        self._command = [
            sys.executable,
            "-m",
            "serving_client.engine",
            "--model",
            str(model),
            "--served-model-name",
            "tiny",
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            "--threads",
            "1",
            *options,
        ]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns at once; `ready` waits."""
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def ready(self) -> None:
        wait_until(self.answers, START_S, f"the engine on {self.url}")

    def answers(self) -> bool:
        try:
            with EngineClient(self.url, timeout_s=5) as engine:
                return engine.health()
        except EngineUnreachable:
            return False

    def end(self) -> None:
        """End as operators end it: it answers what it has begun."""
        if self._process:
            self._process.terminate()
            self._process.wait()

    def kill(self) -> None:
        if self._process:
            self._process.kill()
            self._process.wait()
