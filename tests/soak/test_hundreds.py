"""Hundreds of adapters of one base model behind an alias each, on two replicas of the embedded engine with few slots.

In full 300 adapters of ranks 4 to 64 and 32 slots; in the ordinary run a tenth of it. With vLLM:
`tests/vllm/test_hundreds.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from adapterhub.accounts.models import Project, User
from registry.models import BaseModel, Cluster
from serving_client.router.app import Settings, make_app
from tests.fakes.server import Server
from tests.soak.engine_process import EngineProcess
from tests.soak.hundreds import Expected, Fleet, Size, control_loop

pytestmark = pytest.mark.slow

FULL, SHORT = Size(300, 32, 900, (1, 10, 100, 300)), Size(30, 8, 120, (1, 30))


@pytest.fixture
def size(request: pytest.FixtureRequest) -> Size:
    return FULL if request.config.getoption("--soak") else SHORT


@pytest.fixture
def cluster(project: Project, base_model: BaseModel, alice: User, size: Size) -> Cluster:
    return Cluster.create(project=project, slug="cpu", base_model=base_model, by=alice.as_actor(), max_loras=size.slots)


@pytest.fixture
def served(
    fresh_database: str, cluster: Cluster, model_folder: Path, alice: User, settings: Any, tmp_path: Path, size: Size
) -> Iterator[str]:
    """Two replicas and a router; its address."""
    slots = ("--max-loras", "16", "--max-cpu-loras", str(size.slots))
    engines = [EngineProcess(model_folder, *slots) for _ in range(2)]
    try:
        for engine in engines:
            engine.start()
        for engine in engines:
            engine.ready()
            cluster.add_replica(url=engine.url, by=alice.as_actor())
        with Server(make_app(Settings(settings.REDIS_URL, tmp_path / "table", tmp_path / "spool", 60.0))) as front:
            yield front.url
    finally:
        for engine in engines:
            engine.kill()


@pytest.fixture
def fleet(
    size: Size, cluster: Cluster, model_folder: Path, alice: User, served: str, ci: str, tmp_path: Path
) -> Iterator[Fleet]:
    with control_loop() as start_loop:
        yield Fleet(size, cluster, model_folder, alice, served, ci, tmp_path, start_loop)


def is_pefts(expected: Expected, choice: dict[str, Any]) -> bool:
    return bool(choice["token_ids"] == expected.ids and choice["text"] == expected.text)


def test_hundreds_of_adapters_answer_as_peft_does(fleet: Fleet, capsys: pytest.CaptureFixture[str]) -> None:
    fleet.check_answers(is_pefts, capsys)
