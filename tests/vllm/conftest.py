"""Two real vLLM servers for the session, a small Llama, and the cast around them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from adapterhub.accounts.models import User
from registry.models import Adapter, AdapterVersion, BaseModel
from serving_client import EngineClient
from tests.builders.base_models import registered_base_model
from tests.byte_llama import save_adapter, save_model, tokenizer
from tests.tools import requires
from tests.vllm.server import MAX_RANK, VllmServer, running


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    folder = Path(__file__).parent
    for item in items:
        if folder in item.path.parents:
            item.add_marker(pytest.mark.vllm)
            item.add_marker(requires("vllm"))


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, words = save_model(tmp_path_factory.mktemp("tiny")), tokenizer()
    words.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    words.save_pretrained(folder)
    return folder


@pytest.fixture
def base_model(db_or_fresh: None, model_folder: Path) -> BaseModel:
    return registered_base_model(model_folder)


@pytest.fixture(scope="session")
def make_folder(model_folder: Path) -> Callable[..., Path]:
    return partial(save_adapter, model_folder)


@pytest.fixture(scope="session")
def servers(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[VllmServer]]:
    with running(model_folder, tmp_path_factory.mktemp("vllm"), MAX_RANK, MAX_RANK) as started:
        yield started


@pytest.fixture
def empty(servers: list[VllmServer]) -> list[VllmServer]:
    """Both servers without adapters, whatever an earlier test did to them."""
    for server in servers:
        server.revive()
        with EngineClient(server.url) as engine:
            for model in engine.models():
                if model.parent:
                    engine.unload_adapter(model.name)
    return servers


@pytest.fixture
def make_version(alice: User, tmp_path: Path, make_folder: Callable[..., Path]) -> Callable[..., AdapterVersion]:
    def make(adapter: Adapter, *, seed: int = 0, **fields: Any) -> AdapterVersion:
        folder = make_folder(tmp_path / f"{adapter.slug}-{seed}", seed, **({"r": 8, "lora_alpha": 16} | fields))
        return AdapterVersion.publish(adapter, folder, method="upload", by=alice.as_actor())

    return make
