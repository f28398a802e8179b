"""The nginx configuration of docs/front.md before two real routers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from tests.builders.nginx import start_nginx
from tests.embedded.fakes import free_port
from tests.fakes.routing import INFER, make_table
from tests.fakes.stage import Engine, Router, running_engine, running_router, running_valkey
from tests.tools import requires
from tests.waiting import wait_until

pytestmark = requires("nginx")
PAGE = Path(__file__).parent.parent / "docs/front.md"
BODY = {"model": "compliance", "prompt": "a"}


class Front:
    """Two routers behind nginx; `stop_first` ends the first of them."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        valkey, self.first = stack.enter_context(running_valkey()), stack.enter_context(ExitStack())
        self.engine: Engine = stack.enter_context(running_engine())
        routers = [self.first.enter_context(running_router(valkey, folder / "a"))]
        routers.append(stack.enter_context(running_router(valkey, folder / "b")))
        for router in routers:
            router.publish(make_table(self.engine.url))
        self.http = stack.enter_context(httpx.Client(base_url=self.start_nginx(folder, routers, stack), timeout=60))
        wait_until(self.is_ready, 60, "nginx to answer")

    def start_nginx(self, folder: Path, routers: list[Router], stack: ExitStack) -> str:
        port = free_port()
        text = PAGE.read_text().split("```nginx\n")[1].split("```")[0].replace("127.0.0.1:8000", f"127.0.0.1:{port}")
        for example, router in zip(("127.0.0.1:8080", "127.0.0.1:8081"), routers, strict=True):
            assert example in text
            text = text.replace(example, str(router.http.base_url).removeprefix("http://").rstrip("/"))
        (folder / "default.conf").write_text(text)
        process = start_nginx(folder)
        stack.callback(process.wait, 60)
        stack.callback(process.terminate)
        return f"http://127.0.0.1:{port}"

    def is_ready(self) -> bool:
        try:
            return self.http.get("/readyz").is_success
        except httpx.TransportError:
            return False

    def status(self) -> int:
        return self.http.post("/v1/completions", headers=INFER, json=BODY).status_code


@pytest.fixture
def front(tmp_path: Path) -> Iterator[Front]:
    with ExitStack() as stack:
        yield Front(tmp_path, stack)


def test_a_stream_passes_chunk_by_chunk(front: Front) -> None:
    front.engine.fake.gate.clear()
    with front.http.stream("POST", "/v1/completions", headers=INFER, json=BODY | {"stream": True}) as answer:
        chunks = answer.iter_text()
        assert "two" in next(chunks)
        front.engine.fake.gate.set()
        assert "".join(chunks).endswith("data: [DONE]\n\n")
    assert answer.headers["x-adapter-version"]


def test_a_router_that_ends_costs_no_request(front: Front) -> None:
    assert [front.status() for _ in range(6)] == [200] * 6
    front.first.close()
    assert [front.status() for _ in range(20)] == [200] * 20


def test_only_the_api_is_public(front: Front) -> None:
    assert front.http.get("/metrics").status_code == 404
    assert front.http.get("/v1/models", headers=INFER).status_code == 200
    assert front.http.post("/v1/load_lora_adapter", headers=INFER, json={}).status_code == 404
