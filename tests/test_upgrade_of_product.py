"""The release that landed last makes a data folder; today's upgrades it while the old web process still runs."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from adapterhub.client import Client, calls
from adapterhub.client.rest_types import Step
from tests.builders.ports import free_ports
from tests.builders.product import ROOT, Product
from tests.byte_llama import save_adapter, save_model, tokenizer
from tests.waiting import wait_until

pytestmark = pytest.mark.slow
# The packages of that commit, as `git archive` gave them: a shallow clone has no history.
LANDED = Path(__file__).parent / "dumps/0dff02b08789.tar.xz"
SCOPES = ("read", "publish", "operate", "infer", "admin", "audit")
STEP: Step = {"weight": 50, "hold_s": 3600, "min_samples": 1}
PROMPTS = ("a bank shall report", "each incident", "within four hours")


@pytest.fixture(scope="module")
def landed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the landed release's source."""
    folder = tmp_path_factory.mktemp("landed")
    with tarfile.open(LANDED) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture
def product(landed: Path) -> Iterator[Product]:
    """The landed release with an empty data folder that has a base model and two adapters."""
    home = Path(tempfile.mkdtemp(prefix="adapterhub-upgrade-", dir="/tmp"))
    home.chmod(0o711)
    base = save_model(home / "data/models/tiny")
    tokenizer().save_pretrained(base)
    product = Product(home / "data", empty=True, folder=landed)
    product.environ |= {"PYTHONPATH": str(landed), "ADAPTERHUB_TORCH_THREADS": "1"}
    yield product
    for process in product.processes():
        process.kill()
    shutil.rmtree(home, ignore_errors=True)


def manage(product: Product, *arguments: str) -> str:
    command = [sys.executable, "manage.py", *arguments]
    done = subprocess.run(command, cwd=product.folder, env=product.environ, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def adapter(product: Product, seed: int) -> Path:
    return save_adapter(product.home / "models/tiny", product.home.parent / f"adapter-{seed}", seed=seed, r=8)


def publish(api: Client, product: Product, seed: int) -> str:
    """Publish a version and return its served name once it is ready."""
    version = api.send(calls.push("dora", adapter(product, seed)))
    wait_until(lambda: api.send(calls.version("dora", version["number"]))["status"] == "ready", 60, "the version")
    return str(version["served_name"])


def set_up(product: Product, token: str) -> list[str]:
    """Serve the first of two versions under an alias; return the served names of both."""
    with Client(product.web, token) as api:
        api.send(calls.post("base-models/", slug="tiny", source="tiny"))
        wait_until(lambda: api.send(calls.get("base-models/tiny/"))["status"] == "ready", 60, "the base model")
        api.send(calls.create_adapter("eu", "dora", "tiny"))
        names = [publish(api, product, seed) for seed in (1, 2)]
        api.send(calls.post("clusters/", project="eu", slug="laptop", base_model="tiny"))
        api.send(calls.post("replicas/", cluster="laptop", url=product.engine))
        api.send(calls.create_alias("eu", "compliance", "laptop", names[0], {}))
    return names


def move(api: Client, stable: str, version: str) -> None:
    api.send(calls.post("aliases/compliance/move/", version=version, expected_version=stable, reason="promoted"))


def ask(product: Product, token: str, prompt: str) -> httpx.Response:
    body = {"model": "compliance", "prompt": prompt, "max_tokens": 12, "temperature": 0}
    headers = {"Authorization": f"Bearer {token}"}
    return httpx.post(f"{product.router}/v1/completions", json=body, headers=headers, timeout=60)


def answers(product: Product, token: str, served_name: str) -> list[str]:
    """Return what the alias answers to each prompt, once it serves the version."""
    wait_until(lambda: ask(product, token, "a").headers.get("x-adapter-version") == served_name, 60, served_name)
    replies = [ask(product, token, prompt) for prompt in PROMPTS]
    assert {reply.headers["x-adapter-version"] for reply in replies} == {served_name}
    return [reply.json()["choices"][0]["text"] for reply in replies]


def stop(product: Product, supervisor: subprocess.Popen[bytes]) -> None:
    supervisor.send_signal(signal.SIGINT)
    supervisor.wait(60)
    wait_until(lambda: not product.processes(), 10, "every process is gone")


@contextmanager
def landed_web(product: Product, source: Path) -> Iterator[str]:
    """The address of a web process of the landed release, by the command of its supervisor, beside the product."""
    [port] = free_ports(1)
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "uvicorn", "adapterhub.asgi:application", "--port", str(port)]
    environ = {**product.environ, "PYTHONPATH": str(source)}
    with subprocess.Popen(command, cwd=source, env=environ) as web:
        try:
            wait_until(lambda: answers_at(address) or web.poll() is not None, 60, "the landed web process answers")
            yield address
        finally:
            web.terminate()


def answers_at(address: str) -> bool:
    try:
        return httpx.get(f"{address}/healthz").is_success
    except httpx.TransportError:
        return False


def test_the_landed_releases_data_serve_and_its_web_process_works_on_the_new_schema(
    product: Product, landed: Path
) -> None:
    supervisor = product.start()
    manage(product, "create_project", "eu")
    token = manage(product, "create_token", "ci", "--project", "eu", *(p for s in SCOPES for p in ("--scope", s)))
    first, second = set_up(product, token)
    before = answers(product, token, first)
    stop(product, supervisor)

    product.folder, product.environ["PYTHONPATH"] = ROOT, str(ROOT)
    supervisor = product.start()
    assert answers(product, token, first) == before
    with Client(product.web, token) as api:
        assert api.send(calls.verify_audit("eu"))["ok"]

    # While an upgrade runs: the landed web process on the new schema, beside new workers, engine and router.
    with landed_web(product, landed) as old, Client(old, token) as api:
        for rows in ("projects", "clusters", "replicas", "aliases", "adapters", "rollouts", "audit/events", "webhooks"):
            assert api.send(calls.get(f"{rows}/")) is not None, rows
        third = publish(api, product, 3)
        api.send(calls.post("clusters/", project="eu", slug="further", base_model="tiny"))
        api.send(calls.post("replicas/", cluster="further", url="http://127.0.0.1:9"))
        move(api, first, second)
        changed = answers(product, token, second)
        assert changed != before
        opened = api.send(calls.open_rollout("compliance", third, [STEP], "better"))["id"]
        wait_until(lambda: api.send(calls.rollout(opened))["status"] == "running", 60, "its replicas are loaded")
        api.send(calls.moved(api.send(calls.rollout(opened)), "promote", "better"))
        last = answers(product, token, third)
        assert last not in (before, changed)
        assert api.send(calls.verify_audit("eu"))["ok"]

    # The upgrade is over: what the landed release wrote is today's.
    with Client(product.web, token) as api:
        assert api.send(calls.verify_audit("eu"))["ok"]
        move(api, third, first)
        assert answers(product, token, first) == before
        assert api.send(calls.verify_audit("eu"))["ok"]
    stop(product, supervisor)
