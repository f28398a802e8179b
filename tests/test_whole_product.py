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
from tests.fakes.kubernetes import TOKEN, FakeKubernetes, endpoint
from tests.tiny_model import save_base_model
from tests.waiting import wait_until

SOURCE = "kubernetes://ml/adapterhub.io/fleet=llama?port=http"


@pytest.fixture
def kubernetes() -> Iterator[FakeKubernetes]:
    kubernetes = FakeKubernetes()
    yield kubernetes
    kubernetes.close()


@pytest.fixture
def product(kubernetes: FakeKubernetes, tmp_path: Path) -> Iterator[Product]:
    home = Path(tempfile.mkdtemp(prefix="adapterhub-product-", dir="/tmp"))
    save_base_model(home / "models" / "tiny")
    product = Product(home, empty=True)
    (tmp_path / "token").write_text(TOKEN)
    product.environ |= {
        "ADAPTERHUB_KUBERNETES_URL": kubernetes.url,
        "ADAPTERHUB_KUBERNETES_ACCOUNT": str(tmp_path),
        "ADAPTERHUB_DISCOVERY_S": "1",
    }
    yield product
    for process in product.processes():
        process.kill()
    shutil.rmtree(home, ignore_errors=True)


@pytest.mark.slow
def test_kill_9_leaves_nothing_and_the_data_go_on(product: Product, kubernetes: FakeKubernetes) -> None:
    supervisor = product.start()
    product.manage("create_project", "eu")
    scopes = [part for scope in ("read", "admin", "operate") for part in ("--scope", scope)]
    token = product.manage("create_token", "ci", "--project", "eu", *scopes)
    headers = {"Authorization": f"Bearer {token}"}
    created = httpx.post(f"{product.web}/api/v1/base-models/", json={"slug": "tiny", "source": "tiny"}, headers=headers)
    assert created.status_code == 202, created.text

    def is_ready() -> bool:
        state = httpx.get(f"{product.web}/api/v1/base-models/tiny/", headers=headers).json()
        assert state["status"] in ("checking", "ready"), state
        return bool(state["status"] == "ready")

    wait_until(is_ready, 30, "a worker has checked the base model")
    # No process of this table does nothing but discover replicas: a task of beat does it.
    cluster = {"project": "eu", "slug": "local", "base_model": "tiny", "discovery": SOURCE}
    assert httpx.post(f"{product.web}/api/v1/clusters/", json=cluster, headers=headers).status_code == 201
    kubernetes.put("engine", endpoint("127.0.0.1"), port=int(product.engine.rpartition(":")[2]))

    def replicas() -> list[str]:
        rows = httpx.get(f"{product.web}/api/v1/replicas/?cluster=local", headers=headers).json()["results"]
        return [row["url"] for row in rows]

    wait_until(lambda: replicas() == [product.engine], 30, "the replica is found")

    assert len(product.processes()) > 6
    supervisor.send_signal(signal.SIGKILL)
    supervisor.wait()
    wait_until(lambda: not product.processes(), 5, "every process is gone")

    again = product.start()
    assert is_ready()
    assert replicas() == [product.engine]
    again.send_signal(signal.SIGINT)
    again.wait(30)
    assert again.returncode == 0
    wait_until(lambda: not product.processes(), 5, "every process is gone")
