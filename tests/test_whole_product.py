"""The real process table on a tiny base model: start, one request, kill -9, start again on the same data."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from tests.tiny_model import save_base_model
from tests.waiting import wait_until

ROOT = Path(__file__).parent.parent


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in sockets]
    for listener in sockets:
        listener.close()
    return ports


class Product:
    """`python -m adapterhub.embedded run` in a data folder of its own."""

    def __init__(self, home: Path) -> None:
        self.home = home
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
        }
        self.output = home / "supervisor.txt"

    def start(self) -> subprocess.Popen[bytes]:
        with self.output.open("wb") as output:
            command = [sys.executable, "-m", "adapterhub.embedded", "run"]
            process = subprocess.Popen(command, cwd=ROOT, env=self.environ, stdout=output, stderr=subprocess.STDOUT)
        wait_until(lambda: self.ready() or process.poll() is not None, 120, "the product is ready")
        assert process.poll() is None, self.output.read_text()
        return process

    def ready(self) -> bool:
        return f"ready {self.web}" in self.output.read_text().splitlines()

    def manage(self, *arguments: str) -> str:
        command = [sys.executable, "manage.py", *arguments]
        done = subprocess.run(command, cwd=ROOT, env=self.environ, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    def processes(self) -> list[psutil.Process]:
        """Everything that runs for this data folder, by its environment or its arguments."""
        return [process for process in psutil.process_iter() if self.owns(process)]

    def owns(self, process: psutil.Process) -> bool:
        try:
            mine = process.environ().get("ADAPTERHUB_HOME") == str(self.home) or str(self.home) in process.cmdline()
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            return False
        return mine and process.status() != psutil.STATUS_ZOMBIE


@pytest.fixture
def product() -> Iterator[Product]:
    home = Path(tempfile.mkdtemp(prefix="adapterhub-product-", dir="/tmp"))
    save_base_model(home / "models" / "tiny")
    product = Product(home)
    yield product
    for process in product.processes():
        process.kill()
    shutil.rmtree(home, ignore_errors=True)


def test_kill_9_leaves_nothing_and_the_data_go_on(product: Product) -> None:
    supervisor = product.start()
    product.manage("create_project", "eu")
    scopes = [part for scope in ("read", "admin", "infer") for part in ("--scope", scope)]
    token = product.manage("create_token", "ci", "--project", "eu", *scopes)
    headers = {"Authorization": f"Bearer {token}"}
    created = httpx.post(f"{product.web}/api/v1/base-models/", json={"slug": "tiny", "source": "tiny"}, headers=headers)
    assert created.status_code == 202, created.text

    def is_ready() -> bool:
        shown = httpx.get(f"{product.web}/api/v1/base-models/tiny/", headers=headers).json()
        assert shown["status"] in ("checking", "ready"), shown
        return bool(shown["status"] == "ready")

    wait_until(is_ready, 30, "a worker has checked the base model")
    assert len(product.processes()) > 6
    supervisor.send_signal(signal.SIGKILL)
    supervisor.wait()
    wait_until(lambda: not product.processes(), 5, "every process is gone")

    again = product.start()
    assert is_ready()
    again.send_signal(signal.SIGINT)
    again.wait(30)
    assert again.returncode == 0
    wait_until(lambda: not product.processes(), 5, "every process is gone")
