"""The product started as a whole: a supervisor and every process of its table."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil

from tests.builders.ports import free_ports
from tests.migrated import place_cluster
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]


class Product:
    """`python -m adapterhub.embedded run` in a data folder of its own.

    Its database is migrated, unless it is to be `empty`: then the first start creates it. `python` may be that of
    another environment that has the product; `folder` is where the command is given.
    """

    def __init__(
        self, home: Path, *, empty: bool = False, python: Path = Path(sys.executable), folder: Path = ROOT
    ) -> None:
        self.home = home
        self.python, self.folder = str(python), folder
        if not empty:
            place_cluster(home)
        web, router, engine = free_ports(3)
        self.web, self.router, self.engine = (f"http://127.0.0.1:{port}" for port in (web, router, engine))
        self.environ = {
            **os.environ,
            "ADAPTERHUB_HOME": str(home),
            "ADAPTERHUB_PORT": str(web),
            "ADAPTERHUB_ROUTER_PORT": str(router),
            "ADAPTERHUB_ENGINE_PORT": str(engine),
            "ADAPTERHUB_ENGINES": "1",
            "ADAPTERHUB_BASE_MODEL": str(home / "models" / "tiny"),
            "ADAPTERHUB_RECONCILE_S": "1",
            # A child for each version would take more time than most tests.
            "ADAPTERHUB_REFERENCE_MB": "0",
        }
        self.output = home / "supervisor.txt"

    def start(self) -> subprocess.Popen[bytes]:
        with self.output.open("wb") as output:
            command = [self.python, "-m", "adapterhub.embedded", "run"]
            process = subprocess.Popen(
                command, cwd=self.folder, env=self.environ, stdout=output, stderr=subprocess.STDOUT
            )
        wait_until(lambda: self.ready() or process.poll() is not None, 300, "the product is ready")
        assert process.poll() is None, self.output.read_text()
        return process

    def ready(self) -> bool:
        return f"ready {self.web}" in self.output.read_text().splitlines()

    def manage(self, *arguments: str) -> str:
        command = [self.python, "-m", "adapterhub.manage", *arguments]
        done = subprocess.run(command, cwd=self.folder, env=self.environ, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    def processes(self) -> list[psutil.Process]:
        """Everything that runs for this data folder, by its environment or its arguments."""
        return [process for process in psutil.process_iter() if self.owns(process)]

    def owns(self, process: psutil.Process) -> bool:
        try:
            is_ours = process.environ().get("ADAPTERHUB_HOME") == str(self.home) or str(self.home) in process.cmdline()
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            return False
        return is_ours and process.status() != psutil.STATUS_ZOMBIE
