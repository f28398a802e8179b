"""The process beside an engine on another machine: what the engine loads was fetched by digest and verified."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from adapterhub import replica_sidecar
from adapterhub.artifacts import FolderStore, S3Store
from adapterhub.replica_sidecar import LOAD, PASSED, Agent, keys_in
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


class Door:
    """A sidecar with two keys before an engine, and a store with one artifact."""

    def __init__(self, folder: Path) -> None:
        (folder / "adapter").mkdir(parents=True)
        (folder / "adapter" / "adapter_config.json").write_text("{}")
        self.store, self.served = FolderStore(folder / "store"), folder / "served"
        self.path = str(self.served / self.store.put_dir(folder / "adapter"))
        self.engine = FakeEngine()
        self.engine.folders = {self.path: 8}

    @contextmanager
    def open(self) -> Iterator[str]:
        with Server(self.engine.app()) as engine:
            agent = Agent(self.store, self.served, engine.url, ["sk-old", "sk-new"])
            with Server(agent.app()) as front:
                yield front.url


@pytest.mark.threat("F3")
@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer sk"}, {"Authorization": b"Bearer \xff"}])
def test_without_the_engine_key_nothing_is_fetched_and_nothing_passes(tmp_path: Path, headers: Any) -> None:
    """The attack: whoever reached the port had a version fetched and loaded by its digest, and asked it."""
    door = Door(tmp_path)
    body = {"model": "tiny", "prompt": "a", "lora_name": "one", "lora_path": door.path}
    paths = [(LOAD, "POST"), *((path, method) for method, paths in PASSED.items() for path in paths)]
    with door.open() as url:
        for path, method in paths:
            answer = httpx.request(method, url + path, json=body, headers=headers)
            assert answer.status_code == (200 if path == "/health" else 401), path
    assert (door.engine.received, door.engine.adapters, door.served.exists()) == ([], {}, False)


def test_each_key_of_the_file_opens_and_reaches_the_engine(tmp_path: Path) -> None:
    door = Door(tmp_path)
    with door.open() as url:
        for key in ("sk-old", "sk-new"):
            with EngineClient(url, key=key) as client:
                client.load_adapter(key, door.path)
    assert set(door.engine.adapters) == {"sk-old", "sk-new"}


def test_the_keys_of_a_file_are_its_lines(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("sk-old\nsk-new\n")
    assert keys_in(tmp_path / "keys") == ["sk-old", "sk-new"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "one of the arguments --key-file --without-key is required"),
        (["--key-file", "{empty}"], "holds no key: write the cluster's engine key into it"),
        (["--key-file", "{missing}"], "No such file"),
    ],
)
def test_it_does_not_start_without_a_key_unless_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    (tmp_path / "empty").touch()
    options = [option.format(empty=tmp_path / "empty", missing=tmp_path / "missing") for option in options]
    place = ["--store", str(tmp_path), "--folder", str(tmp_path), "--engine", "http://127.0.0.1:1", "--host", "::1"]
    monkeypatch.setattr(sys, "argv", ["replica_sidecar", *place, "--port", "0", *options])
    with pytest.raises(SystemExit):
        replica_sidecar.main()
    assert words in capsys.readouterr().err
