"""Each of our services' commands starts here as the process that it is there, with no other environment than its own,
and no other packages than those of its image.

Only what the composition brings is exchanged: host names, ports, and the folders of volumes and secrets.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import runpy
import secrets
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.conf import settings

from adapterhub.embedded.layout import database_owner_url, database_signer_url, database_url
from tests.composition import ROOT, our_services
from tests.conftest import HOME
from tests.embedded.fakes import free_port
from tests.waiting import wait_until

START_S = 60
IMAGE_PACKAGES = runpy.run_path(str(ROOT / ".ci/image_packages.py"))
WORKERS = ("control-worker", "default-worker", "download-worker", "gpu-worker")
READY = {**dict.fromkeys(WORKERS, " ready."), "beat": "beat: Starting..."}


class Started:
    """A service's process and what it wrote."""

    def __init__(self, command: list[str], env: dict[str, str], log: Path) -> None:
        self.log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=env, stdout=output, stderr=output, start_new_session=True
            )

    def says(self, text: str) -> bool:
        """True when it said the text; fails at once when it ended before."""
        assert self.process.poll() in (None, 0), self.log.read_text()
        return text in self.log.read_text()

    def answers(self, url: str) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=2) as answer:  # noqa: S310 - our own
            return answer.status == 200
        return False

    def lines_of_json(self) -> int:
        """Count its lines; each has to be an object of JSON, as whoever collects them expects."""
        lines = self.log.read_text().splitlines()
        assert [line for line in lines if not line.startswith("{")] == []
        return len([json.loads(line)["message"] for line in lines])

    def end(self, stop_signal: str) -> None:
        """Ends within 20 s by the signal that Compose sends."""
        try:
            self.process.send_signal(signal.Signals[stop_signal])
            self.process.wait(20)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


@pytest.fixture(scope="module")
def interpreters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The interpreter of each image, with the packages of its lock file."""
    folder = tmp_path_factory.mktemp("images")
    interpreter_of = {image: IMAGE_PACKAGES["environment"](image, folder / image) for image in ("app", "router")}
    app, router = (str(environment / "bin/python") for environment in interpreter_of.values())
    images = {service["image"] for service in our_services().values()}
    return {image: router if image.startswith("adapterhub-router:") else app for image in images}


@pytest.fixture
def exchanged(fresh_database: str, tmp_path: Path, interpreters: dict[str, str]) -> dict[str, str]:
    """What a name of the composition is here."""
    folder = tmp_path / "secrets"
    folder.mkdir()
    (folder / "secret_key").write_text(secrets.token_urlsafe(64))
    (folder / "router_secret").write_text(secrets.token_urlsafe(64))
    (folder / "database_url").write_text(database_url(HOME, fresh_database))
    (folder / "database_owner_url").write_text(database_owner_url(HOME, fresh_database))
    (folder / "database_signer_url").write_text(database_signer_url(HOME, fresh_database))
    return {
        **interpreters,
        "redis://valkey:6379/0": settings.REDIS_URL,
        "/run/secrets": str(folder),
        "/var/lib/adapterhub": str(tmp_path),
        "/tmp/": f"{tmp_path}/",  # noqa: S108 - the name in the composition
        "0.0.0.0": "127.0.0.1",  # noqa: S104 - the name in the composition
    }


@contextlib.contextmanager
def started(name: str, exchanged: dict[str, str], port: int = 0) -> Iterator[Started]:
    service = our_services()[name]
    command = [exchange(service["image"], exchanged), *(exchange(word, exchanged) for word in service["command"][1:])]
    if port:
        command[command.index("--port") + 1] = str(port)
    environment = {key: exchange(text, exchanged) for key, text in (service.get("environment") or {}).items()}
    home = exchanged["/var/lib/adapterhub"]
    env = {"PATH": os.defpath, "HOME": home, "ADAPTERHUB_HOME": home, "PYTHONUNBUFFERED": "1", **environment}
    process = Started(command, env, Path(home) / "log.txt")
    try:
        yield process
    finally:
        process.end(service.get("stop_signal", "SIGTERM"))


def exchange(text: str, exchanged: dict[str, str]) -> str:
    """In one pass: what stands here may itself look like a name of the composition."""
    return re.sub("|".join(map(re.escape, exchanged)), lambda match: exchanged[match[0]], text)


def is_healthy(name: str, exchanged: dict[str, str]) -> bool:
    """True when the health check of the service, run here, finds nothing."""
    check = our_services()[name]["healthcheck"]["test"]
    command = [exchanged[our_services()["web"]["image"]], *check[2:-1], exchange(check[-1], exchanged)]
    return subprocess.run(command, check=False, stderr=subprocess.DEVNULL).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["web", "router", "signer"])
def test_a_server_answers(name: str, exchanged: dict[str, str]) -> None:
    port = free_port()
    with started(name, exchanged, port) as process:
        wait_until(lambda: process.answers(f"http://127.0.0.1:{port}/healthz"), START_S, f"{name} answers")
        assert process.lines_of_json() > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(READY))
def test_a_celery_process_is_ready(name: str, exchanged: dict[str, str]) -> None:
    with started(name, exchanged) as process:
        wait_until(lambda: process.says(READY[name]), START_S, f"{name} says it is ready")
        wait_until(lambda: is_healthy(name, exchanged), START_S, f"{name} is healthy")
        assert process.lines_of_json() > 0


@pytest.mark.slow
def test_discovery_is_healthy_and_ends_when_it_is_stopped(exchanged: dict[str, str]) -> None:
    with started("discovery", exchanged) as process:
        wait_until(lambda: process.says("") and is_healthy("discovery", exchanged), START_S, "discovery is healthy")


@pytest.mark.slow
def test_the_migration_ends(exchanged: dict[str, str]) -> None:
    with started("migrate", exchanged) as process:
        assert process.process.wait(START_S) == 0, process.log.read_text()
        assert "No migrations to apply" in process.log.read_text()


def test_no_service_was_forgotten() -> None:
    assert set(our_services()) == {"web", "router", "signer", "migrate", "discovery", *READY}
