"""The web process for tests that speak HTTP to it: in the test's own process, or as the process that it is."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
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


@pytest.fixture
def web_process(fresh_database: str) -> Iterator[WebProcess]:
    """A web process as in production."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    database = settings.DATABASES["default"]
    url = f"postgres://{database['USER']}@{quote(database['HOST'], safe='')}/{fresh_database}"
    command = [sys.executable, "-m", "adapterhub.web", "--port", str(port)]
    process = subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, "DATABASE_URL": url, "ADAPTERHUB_HOME": str(home())}
    )
    try:
        wait_until(lambda: answers(f"http://127.0.0.1:{port}/healthz"), 30, "the web process answers")
        yield WebProcess(f"http://127.0.0.1:{port}", process.pid)
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture
def site_process(web_process: WebProcess) -> str:
    """The address of a web process as in production."""
    return web_process.url


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:  # noqa: S310 - our own process
            return bool(response.status == 200)
    except urllib.error.URLError:
        return False
