"""A real vLLM's log-probabilities for a version, compared with PEFT's."""

from __future__ import annotations

from collections.abc import Callable

from adapterhub.accounts.models import Project, User
from registry.evidence.served_comparison import compare_next
from registry.models import Adapter, AdapterVersion, BaseModel, Cluster, Replica
from serving_client import EngineClient
from tests.vllm.server import MAX_RANK, VllmServer


def test_vllm_changes_the_answers_as_peft_does(
    empty: list[VllmServer],
    project: Project,
    base_model: BaseModel,
    adapter: Adapter,
    make_version: Callable[..., AdapterVersion],
    alice: User,
) -> None:
    version = make_version(adapter, seed=3)
    with EngineClient(empty[0].url, timeout_s=60) as engine:
        engine.load_adapter(version.served_name, str(version.served_folder()))
    cluster = Cluster.create(
        project=project, slug="fleet", base_model=base_model, by=alice.as_actor(), engine="vllm", max_lora_rank=MAX_RANK
    )
    Replica.objects.create(
        cluster=cluster,
        url=empty[0].url,
        is_healthy=True,
        engine_version="vLLM",
        loaded={version.served_name: str(version.served_folder())},
    )
    row = compare_next()
    assert row is not None
    assert (row.verdict, row.reason) == ("matches", "")
    assert row.effect is not None
    assert row.difference is not None
    assert row.difference < 1e-3 < row.effect
