"""The process beside an engine on another machine: what the engine loads was fetched by digest and verified."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from adapterhub.artifacts import FolderStore, S3Store
from adapterhub.replica_sidecar import Agent
from serving_client import EngineClient, EngineFailed, EngineRejected
from tests.byte_llama import save_adapter, save_model
from tests.fakes.engine import FakeEngine
from tests.fakes.server import Server, closed_url
from tests.soak.engine_process import EngineProcess

BUCKET = "synced"


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def engine(model_folder: Path) -> Iterator[EngineProcess]:
    process = EngineProcess(model_folder)
    process.start()
    process.ready()
    yield process
    process.kill()


@pytest.fixture
def store(s3_keys: None, s3_endpoint: str, tmp_path: Path) -> S3Store:
    store = S3Store(BUCKET, tmp_path.name, s3_endpoint)
    store.client.create_bucket(Bucket=BUCKET)
    return store


@pytest.fixture
def digest(store: S3Store, model_folder: Path, tmp_path: Path) -> str:
    return store.put_dir(save_adapter(model_folder, tmp_path / "adapter", 1, r=8, lora_alpha=16))


@pytest.fixture
def served(tmp_path: Path) -> Path:
    return tmp_path / "served"


@pytest.fixture
def replica(store: S3Store, served: Path, engine: EngineProcess) -> Iterator[EngineClient]:
    """As the control loop reaches it."""
    with Server(Agent(store, served, engine.url).app()) as front, EngineClient(front.url) as client:
        yield client
        for model in client.models():
            if model.parent:
                client.unload_adapter(model.name)


@pytest.mark.slow
def test_a_load_is_fetched_first(replica: EngineClient, served: Path, digest: str) -> None:
    path = str(served / digest)
    replica.load_adapter("one", path)
    assert [(model.name, model.root) for model in replica.models()][1:] == [("one", path)]
    assert replica.complete("one", "The bank").text != replica.complete("tiny", "The bank").text
    assert replica.health()


@pytest.mark.slow
def test_a_stream_comes_as_it_is_made(replica: EngineClient) -> None:
    body = {"model": "tiny", "prompt": "The bank", "max_tokens": 8, "ignore_eos": True, "stream": True}
    with httpx.stream("POST", f"{replica.url}/v1/completions", json=body) as answer:
        chunks = [line for line in answer.iter_lines() if line]
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert chunks[-1] == "data: [DONE]"
    assert len(chunks) > 3


@pytest.mark.slow
def test_what_was_changed_in_the_bucket_is_not_loaded(
    replica: EngineClient, store: S3Store, served: Path, digest: str
) -> None:
    key = store.key(digest, "adapter_config.json")
    content = store.client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
    store.client.put_object(Bucket=BUCKET, Key=key, Body=content + b" ")
    with pytest.raises(EngineRejected, match="its files were changed"):
        replica.load_adapter("one", str(served / digest))
    assert not (served / digest).exists()
    assert len(replica.models()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("path", ["/etc", "{served}/../{digest}", "{served}/other"])
def test_other_folders_are_not_loaded(replica: EngineClient, served: Path, digest: str, path: str) -> None:
    with pytest.raises(EngineRejected, match="Only versions below"):
        replica.load_adapter("one", path.format(served=served, digest=digest))


@pytest.mark.slow
def test_an_artifact_that_is_not_there_is_refused_and_a_store_that_is_away_is_no_refusal(
    replica: EngineClient, served: Path, engine: EngineProcess, digest: str, s3_keys: None
) -> None:
    with pytest.raises(EngineRejected, match="is not in bucket"):
        replica.load_adapter("one", str(served / ("0" * 64)))
    away = S3Store(BUCKET, "artifacts", closed_url())
    agent = Agent(away, served, engine.url)
    with Server(agent.app()) as front, EngineClient(front.url) as client, pytest.raises(EngineFailed, match="store"):
        client.load_adapter("one", str(served / digest))


@pytest.mark.slow
@pytest.mark.threat("F1")
@pytest.mark.parametrize("path", ["/metrics", "/adapters", "/invocations", "/tokenize"])
def test_the_engines_other_routes_are_not_reached(replica: EngineClient, path: str) -> None:
    assert httpx.get(replica.url + path).status_code == 404


@pytest.mark.slow
def test_an_engine_that_is_down_is_no_refusal(store: S3Store, served: Path, digest: str) -> None:
    agent = Agent(store, served, closed_url())
    with Server(agent.app()) as front, EngineClient(front.url) as client, pytest.raises(EngineFailed, match="engine"):
        client.load_adapter("one", str(served / digest))


def test_embeddings_and_responses_pass_and_the_engine_gets_its_key(store: S3Store, served: Path) -> None:
    fake = FakeEngine()
    fake.embeds = fake.responds = True
    with Server(fake.app()) as engine, Server(Agent(store, served, engine.url).app()) as front:
        headers = {"Authorization": "Bearer sk-1"}
        for path, body in (("embeddings", {"input": "a"}), ("responses", {"input": "a"})):
            answer = httpx.post(f"{front.url}/v1/{path}", json={"model": "tiny", **body}, headers=headers)
            assert answer.status_code == 200
    assert [received["authorization"] for _, received in fake.received] == ["Bearer sk-1"] * 2


@pytest.mark.threat("D18")
@pytest.mark.parametrize("path", ["/v1/load_lora_adapter", "/v1/completions"])
def test_a_body_without_end_is_not_kept(tmp_path: Path, path: str) -> None:
    """The attack: whoever reaches the port may send; the engine asks for its key only behind the proxy."""
    taken = 0

    async def without_end() -> AsyncIterator[bytes]:
        nonlocal taken
        while taken < 2**26:
            taken += 2**20
            yield b"x" * 2**20

    async def refused(url: str) -> int:
        async with httpx.AsyncClient(base_url=url) as http:
            return (await http.post(path, content=without_end())).status_code

    fake = FakeEngine()
    with Server(fake.app()) as engine, Server(Agent(FolderStore(tmp_path), tmp_path, engine.url).app()) as front:
        with suppress(httpx.TransportError):
            assert asyncio.run(refused(front.url)) == 413
        assert taken < 2**25
        assert httpx.post(front.url + "/v1/load_lora_adapter", content=b"[" * 100_000).status_code == 400
    assert fake.received == []
