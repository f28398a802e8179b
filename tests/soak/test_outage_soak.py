"""Postgres, Valkey, web and workers are gone while users ask: nobody notices, and a restarted router serves, too.

In full for ten minutes. The supervisor is held still meanwhile, as it would start them again.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.builders.product import Product
from tests.byte_llama import save_adapter, save_model
from tests.crowd import Crowd, counts_by_version
from tests.waiting import wait_until

pytestmark = pytest.mark.slow

SCOPES = ("read", "publish", "operate", "infer", "admin")
SERVES_ON = ("serving_client.router", "serving_client.engine", "adapterhub.embedded")
STREAMS = 3
SAMPLE = 50  # of the answers whose reports are looked for


def serves_on(process: psutil.Process) -> bool:
    """True for the data plane, and for a process that has ended meanwhile."""
    try:
        return any(name in process.cmdline() for name in SERVES_ON)
    except psutil.NoSuchProcess:
        return True


class Served:
    """A whole product whose alias `compliance` is served through its router."""

    def __init__(self, product: Product) -> None:
        self.product = product
        self.supervisor = product.start()
        product.manage("create_project", "eu")
        self.token = product.manage("create_token", "ci", "--project", "eu", *(f"--scope={name}" for name in SCOPES))
        self.headers = {"Authorization": f"Bearer {self.token}"}
        self.rest = httpx.Client(base_url=f"{product.web}/api/v1/", headers=self.headers, timeout=60)

    def post(self, path: str, **fields: Any) -> Any:
        answer = self.rest.post(path, **fields)
        assert answer.is_success, answer.text
        return answer.json()

    def set_up(self, adapter: Path) -> None:
        self.post("base-models/", json={"slug": "tiny", "source": "tiny"})
        wait_until(lambda: self.rest.get("base-models/tiny/").json()["status"] == "ready", 60, "the base model")
        self.post("adapters/", json={"project": "eu", "slug": "dora", "base_model": "tiny"})
        files = {
            name: (adapter / file).read_bytes()
            for name, file in (
                ("adapter_model", "adapter_model.safetensors"),
                ("adapter_config", "adapter_config.json"),
            )
        }
        version = self.post("adapters/dora/versions/", files=files)
        name = f"adapters/dora/versions/{version['number']}/"
        wait_until(lambda: self.rest.get(name).json()["status"] == "ready", 60, "the version is checked")
        self.post("clusters/", json={"project": "eu", "slug": "cpu", "base_model": "tiny"})
        self.post("replicas/", json={"cluster": "cpu", "url": self.product.engine})
        alias = {"project": "eu", "name": "compliance", "cluster": "cpu", "version": version["served_name"]}
        self.post("aliases/", json=alias)
        wait_until(self.answers, 60, "the router serves the alias")

    def answers(self) -> bool:
        body = {"model": "compliance", "prompt": "a", "max_tokens": 1}
        try:
            return httpx.post(f"{self.product.router}/v1/completions", json=body, headers=self.headers).is_success
        except httpx.HTTPError:
            return False

    def spooled(self) -> str:
        """Reports that the router keeps while Valkey is away."""
        return "".join(path.read_text() for path in self.product.home.rglob("outcomes.spool"))

    def stop_all_but_the_data_plane(self) -> None:
        """kill -9; what is left is the router, the engine and the supervisor, who is held."""
        below = psutil.Process(self.supervisor.pid).children(recursive=True)
        # Postgres and Valkey write over their environment: they are known by their parent alone.
        lost = [process for process in below if not serves_on(process)]
        assert any("valkey" in process.name() for process in lost)
        assert any("postgres" in process.name() for process in lost)
        self.supervisor.send_signal(signal.SIGSTOP)
        for process in lost:
            with suppress(psutil.NoSuchProcess):
                process.kill()

    def router_process(self) -> psutil.Process:
        (router,) = [process for process in self.product.processes() if "serving_client.router" in process.cmdline()]
        return router


@pytest.fixture
def served() -> Iterator[Served]:
    home = Path(tempfile.mkdtemp(prefix="adapterhub-outage-", dir="/tmp"))
    model = save_model(home / "models" / "tiny")
    product = Product(home)
    served = Served(product)
    try:
        with served.rest:
            served.set_up(save_adapter(model, home / "adapter", 1, r=8, lora_alpha=16))
            yield served
    finally:
        for process in product.processes():
            process.kill()
        served.supervisor.wait()
        shutil.rmtree(home, ignore_errors=True)


def test_users_do_not_notice_that_the_control_plane_is_gone(soak_s: float, served: Served) -> None:
    outage = threading.Event()
    with Crowd(served.product.router, served.token, streams=STREAMS).asking() as traffic:
        traffic.until(lambda answers: len(answers) > 20, "traffic before")
        served.stop_all_but_the_data_plane()
        outage.wait(soak_s)
        traffic.until(lambda answers: len(answers) > 20, "traffic to the end")
    assert {answer.status for answer in traffic.answers} == {200}, counts_by_version(traffic.answers)
    with pytest.raises(httpx.TransportError):
        served.rest.get("adapters/")

    last = traffic.answers[-1].response_id
    wait_until(lambda: last in served.spooled(), 30, "the last answer's report on disk")
    with restarted(served.router_process()):
        wait_until(served.answers, 60, "a router that knows its snapshot alone")
    served.supervisor.send_signal(signal.SIGCONT)
    response_ids = [answer.response_id for answer in traffic.answers[::SAMPLE]]
    wait_until(
        lambda: all(is_known(served, answer) for answer in response_ids), 120, "the outage's answers in the database"
    )


@contextmanager
def restarted(router: psutil.Process) -> Iterator[None]:
    """kill -9 and the same command again, by hand, for a while."""
    command, environ, folder = router.cmdline(), router.environ(), router.cwd()
    router.kill()
    # The supervisor, held still, does not reap it.
    wait_until(lambda: router.status() == psutil.STATUS_ZOMBIE, 30, "the router has ended")
    with subprocess.Popen(
        command, env=environ, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as own:
        try:
            yield
        finally:
            own.kill()


def is_known(served: Served, response_id: str) -> bool:
    try:
        return served.rest.get(f"responses/{response_id}/").is_success
    except httpx.TransportError:
        return False
