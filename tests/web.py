"""The web process for tests that speak HTTP to it: in the test's own process, or as the process that it is."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pytest
from django.conf import settings
from django.db import connections

from adapterhub.environment import home
from adapterhub.http.asgi_handler import OneThread
from tests.fakes.server import Server
from tests.waiting import wait_until

ROOT = Path(__file__).parent.parent
# Of resident memory of the web process, through every attack.
MOST_KB = 1_000_000


@pytest.fixture
def site(fresh_database: str) -> Iterator[str]:
    """The address of the application that the web process runs, served from a thread of the test."""
    application = OneThread()
    # The application's threads end with the test, and a connection that one of them keeps would not be closed.
    max_age = connections.settings["default"]["CONN_MAX_AGE"]
    connections.settings["default"]["CONN_MAX_AGE"] = 0
    try:
        with Server(application, lifespan="off") as server:
            yield server.url
    finally:
        application.threads.shutdown()
        connections.settings["default"]["CONN_MAX_AGE"] = max_age


@dataclass(frozen=True)
class WebProcess:
    url: str
    pid: int

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    @property
    def peak_kb(self) -> int:
        """The most memory that the process has ever held."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


@contextmanager
def running_web(database: str, **environment: str) -> Iterator[WebProcess]:
    """Run a web process as in production; whatever the block did to it, its memory has stayed under a gigabyte."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    default = settings.DATABASES["default"]
    url = f"postgres://{default['USER']}@{quote(default['HOST'], safe='')}/{database}"
    command = [sys.executable, "-m", "adapterhub.web", "--port", str(port)]
    env = {**os.environ, "DATABASE_URL": url, "ADAPTERHUB_HOME": str(home()), **environment}
    process = subprocess.Popen(command, cwd=ROOT, env=env)
    try:
        wait_until(lambda: answers(f"http://127.0.0.1:{port}/healthz"), 30, "the web process answers")
        web = WebProcess(f"http://127.0.0.1:{port}", process.pid)
        yield web
        assert process.poll() is None, "the web process has ended"
        assert web.peak_kb < MOST_KB
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture
def web_process(fresh_database: str) -> Iterator[WebProcess]:
    """A web process as in production, under a gigabyte to its end."""
    with running_web(fresh_database) as web:
        yield web


@pytest.fixture
def site_process(web_process: WebProcess) -> str:
    """The address of a web process as in production."""
    return web_process.url


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:  # noqa: S310 - our own process
            return bool(response.status == 200)
    except OSError:
        return False
