"""A product is backed up while it serves, loses its data, and gives the same answers after the restore."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from adapterhub.client import Client, calls
from tests.builders.product import ROOT, Product
from tests.byte_llama import save_adapter, save_model, tokenizer
from tests.waiting import wait_until

pytestmark = pytest.mark.slow
SCOPES = ("read", "publish", "operate", "infer", "admin", "audit")
PROMPTS = ("a bank shall report", "each incident", "within four hours")


@pytest.fixture
def product() -> Iterator[Product]:
    home = Path(tempfile.mkdtemp(prefix="adapterhub-backup-", dir="/tmp"))
    home.chmod(0o711)
    base = save_model(home / "data/models/tiny")
    tokenizer().save_pretrained(base)
    product = Product(home / "data")
    product.environ["ADAPTERHUB_TORCH_THREADS"] = "1"
    yield product
    for process in product.processes():
        process.kill()
    shutil.rmtree(home, ignore_errors=True)


def publish(product: Product, token: str) -> None:
    adapter = save_adapter(product.home / "models/tiny", product.home / "adapter", seed=1, r=8, lora_alpha=16)
    with Client(product.web, token) as api:
        api.send(calls.post("base-models/", slug="tiny", source="tiny"))
        wait_until(lambda: api.send(calls.get("base-models/tiny/"))["status"] == "ready", 60, "the base model")
        api.send(calls.create_adapter("eu", "dora", "tiny"))
        version = api.send(calls.push("dora", adapter))
        number = version["number"]
        wait_until(lambda: api.send(calls.version("dora", number))["status"] == "ready", 60, "the version")
        api.send(calls.post("clusters/", project="eu", slug="laptop", base_model="tiny"))
        api.send(calls.post("replicas/", cluster="laptop", url=product.engine))
        api.send(calls.create_alias("eu", "compliance", "laptop", version["served_name"], {}))


def answers(product: Product, token: str) -> list[Any]:
    """Return what the alias answers to each prompt, once it is served."""

    def ask(prompt: str) -> httpx.Response:
        body = {"model": "compliance", "prompt": prompt, "max_tokens": 12, "temperature": 0}
        headers = {"Authorization": f"Bearer {token}"}
        return httpx.post(f"{product.router}/v1/completions", json=body, headers=headers, timeout=60)

    wait_until(lambda: ask("a").is_success, 60, "the version is served")
    replies = [ask(prompt) for prompt in PROMPTS]
    return [(reply.json()["choices"][0]["text"], reply.headers["x-adapter-version"]) for reply in replies]


def adapterhub(product: Product, *arguments: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-c", "from adapterhub.cli import main; main()", *arguments]
    return subprocess.run(program, cwd=ROOT, env=product.environ, capture_output=True, text=True, check=False)


def stop(product: Product, supervisor: subprocess.Popen[bytes]) -> None:
    supervisor.send_signal(signal.SIGINT)
    supervisor.wait(60)
    wait_until(lambda: not product.processes(), 10, "every process is gone")


@contextmanager
def services(product: Product) -> Iterator[None]:
    """Postgres and Valkey alone, as docs/production.md says for a restore."""
    command = [sys.executable, "-m", "adapterhub.embedded", "services"]
    with subprocess.Popen(command, cwd=ROOT, env=product.environ, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout
        assert running.stdout.readline().startswith("ready ")
        yield
        running.send_signal(signal.SIGINT)


def test_the_same_answers_a_verified_trail_and_valid_tokens(product: Product) -> None:
    backup, passphrase = product.home.parent / "backup", product.home.parent / "passphrase"
    passphrase.write_text("the long passphrase of the vault")
    supervisor = product.start()
    product.manage("create_project", "eu")
    token = product.manage("create_token", "ci", "--project", "eu", *(p for s in SCOPES for p in ("--scope", s)))
    publish(product, token)
    before = answers(product, token)
    made = adapterhub(product, "backup", str(backup), "--passphrase-file", str(passphrase))
    assert made.returncode == 0, made.stderr
    assert (backup.stat().st_mode & 0o777, (backup / "keys.json").stat().st_size > 0) == (0o700, True)
    stop(product, supervisor)

    # All that the installation wrote is lost; base models are no part of a backup.
    for path in product.home.iterdir():
        if path.name == "models":
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()

    with services(product):
        restored = adapterhub(product, "restore", str(backup), "--passphrase-file", str(passphrase))
        assert restored.returncode == 0, restored.stderr
        assert "eu: " in restored.stdout
        assert "events intact" in restored.stdout

    supervisor = product.start()
    assert answers(product, token) == before
    with Client(product.web, token) as api:
        assert api.send(calls.verify_audit("eu"))["ok"]
    stop(product, supervisor)
