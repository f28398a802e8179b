"""The engine client against a real vLLM: every answer that the control loop reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from serving_client import AdapterAlreadyLoaded, AdapterNotLoaded, EngineClient, EngineRejected, LoadedModel
from tests.vllm.server import VllmServer

PROMPT = "This package was"
RANKS = (4, 8, 16, 64)


@pytest.fixture
def client(empty: list[VllmServer]) -> Iterator[EngineClient]:
    with EngineClient(empty[0].url, timeout_s=60) as client:
        yield client


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory, make_folder: Callable[..., Path]) -> dict[int, Path]:
    root = tmp_path_factory.mktemp("ranks")
    return {rank: make_folder(root / str(rank), rank, r=rank, lora_alpha=rank) for rank in RANKS}


def test_load_list_complete_unload(client: EngineClient, folders: dict[int, Path]) -> None:
    client.load_adapter("one", str(folders[8]))
    assert LoadedModel("one", str(folders[8]), "tiny") in client.models()
    assert client.health()
    assert client.version() == "0.32.0"
    assert client.complete("one", PROMPT).text != client.complete("tiny", PROMPT).text
    client.unload_adapter("one")
    assert [model.name for model in client.models()] == ["tiny"]
    with pytest.raises(AdapterNotLoaded, match="does not exist"):
        client.complete("one", PROMPT)


def test_what_it_says_to_a_name_twice_and_to_one_unknown(client: EngineClient, folders: dict[int, Path]) -> None:
    client.load_adapter("one", str(folders[4]))
    with pytest.raises(AdapterAlreadyLoaded):
        client.load_adapter("one", str(folders[8]))
    with pytest.raises(AdapterNotLoaded):
        client.unload_adapter("two")


def test_a_load_goes_to_one_replica_alone(
    client: EngineClient, servers: list[VllmServer], folders: dict[int, Path]
) -> None:
    client.load_adapter("one", str(folders[4]))
    with EngineClient(servers[1].url) as other, pytest.raises(AdapterNotLoaded):
        other.complete("one", PROMPT)


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"r": 128}, "rank 128 is greater than max_lora_rank 64"), ({"r": 8, "use_dora": True}, "DoRA")],
)
def test_adapters_that_it_refuses_for_good(
    client: EngineClient, make_folder: Callable[..., Path], tmp_path: Path, fields: dict[str, int], message: str
) -> None:
    with pytest.raises(EngineRejected, match=message):
        client.load_adapter("bad", str(make_folder(tmp_path / "bad", 1, **fields)))
    assert client.health(), "a refusal does not hurt it"


def test_a_folder_that_is_not_there(client: EngineClient, tmp_path: Path) -> None:
    with pytest.raises(EngineRejected, match="No adapter found"):
        client.load_adapter("gone", str(tmp_path / "gone"))


def test_ranks_mixed_with_the_base_answer_as_each_alone(client: EngineClient, folders: dict[int, Path]) -> None:
    names = ["tiny", *(f"rank-{rank}" for rank in RANKS)]
    for rank, folder in folders.items():
        client.load_adapter(f"rank-{rank}", str(folder))
    alone = {name: client.complete(name, PROMPT).text for name in names}
    assert len(set(alone.values())) == len(names)
    with ThreadPoolExecutor(10) as pool:
        mixed = list(pool.map(lambda name: client.complete(name, PROMPT).text, names * 4))
    assert mixed == [alone[name] for name in names * 4]
