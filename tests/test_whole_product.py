"""The real process table on a tiny base model: start, one request, kill -9, start again on the same data."""

from __future__ import annotations

import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.builders.product import Product
from tests.tiny_model import save_base_model
from tests.waiting import wait_until


@pytest.fixture
def product() -> Iterator[Product]:
    home = Path(tempfile.mkdtemp(prefix="adapterhub-product-", dir="/tmp"))
    save_base_model(home / "models" / "tiny")
    product = Product(home, empty=True)
    yield product
    for process in product.processes():
        process.kill()
    shutil.rmtree(home, ignore_errors=True)


@pytest.mark.slow
def test_kill_9_leaves_nothing_and_the_data_go_on(product: Product) -> None:
    supervisor = product.start()
    product.manage("create_project", "eu")
    scopes = [part for scope in ("read", "admin", "infer") for part in ("--scope", scope)]
    token = product.manage("create_token", "ci", "--project", "eu", *scopes)
    headers = {"Authorization": f"Bearer {token}"}
    created = httpx.post(f"{product.web}/api/v1/base-models/", json={"slug": "tiny", "source": "tiny"}, headers=headers)
    assert created.status_code == 202, created.text

    def is_ready() -> bool:
        state = httpx.get(f"{product.web}/api/v1/base-models/tiny/", headers=headers).json()
        assert state["status"] in ("checking", "ready"), state
        return bool(state["status"] == "ready")

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
