"""Many adapters of one base model on two real vLLM servers with few slots, held to PEFT's answers.

With --soak 64 adapters of ranks 4 to 64; else a dozen.
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
from tests.soak.hundreds import Expected, Fleet, Size, control_loop
from tests.vllm.server import MAX_RANK, SLOTS, VllmServer

FULL, SHORT = Size(64, SLOTS, 120, (64,)), Size(12, SLOTS // 4, 30, (12,))
# vLLM sums in another order: of two tokens that PEFT holds for as good as equal it may choose the other.
ROUNDING = 1e-3


@pytest.fixture
def size(request: pytest.FixtureRequest) -> Size:
    return FULL if request.config.getoption("--soak") else SHORT


@pytest.fixture
def cluster(project: Project, base_model: BaseModel, alice: User, size: Size) -> Cluster:
    return Cluster.create(
        project=project,
        slug="fleet",
        base_model=base_model,
        by=alice.as_actor(),
        engine="vllm",
        max_lora_rank=MAX_RANK,
        max_loras=size.slots,
    )


@pytest.fixture
def served(
    fresh_database: str, cluster: Cluster, empty: list[VllmServer], alice: User, settings: Any, tmp_path: Path
) -> Iterator[str]:
    """The router before both servers; its address."""
    for server in empty:
        cluster.add_replica(url=server.url, by=alice.as_actor())
    with Server(make_app(Settings(settings.REDIS_URL, tmp_path / "table", tmp_path / "spool", 90.0))) as front:
        yield front.url


@pytest.fixture
def fleet(
    size: Size, cluster: Cluster, model_folder: Path, alice: User, served: str, ci: str, tmp_path: Path
) -> Iterator[Fleet]:
    with control_loop() as start_loop:
        yield Fleet(size, cluster, model_folder, alice, served, ci, tmp_path, start_loop)


def is_pefts(expected: Expected, choice: dict[str, Any]) -> bool:
    """The same tokens, up to a choice between equals: what follows that answers another text."""
    pairs = zip(choice["token_ids"], expected.ids, expected.logits, strict=True)
    for answered, wanted, logits in pairs:
        if answered != wanted:
            return float(logits[wanted] - logits[answered]) < ROUNDING
    return True


def test_many_adapters_answer_as_peft_does(fleet: Fleet, capsys: pytest.CaptureFixture[str]) -> None:
    fleet.check_answers(is_pefts, capsys)
