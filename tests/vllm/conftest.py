"""Two real vLLM servers for the session, a small Llama, and the cast around them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from adapterhub.accounts.models import User
from registry.models import Adapter, AdapterVersion, BaseModel
from serving_client import EngineClient
from tests.vllm.server import PYTHON, VllmServer, running

END = 256
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    asked = "vllm" in os.environ.get("ADAPTERHUB_REQUIRE", "").split(",")
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.vllm)
            if not asked:
                item.add_marker(pytest.mark.skip(reason="a real vLLM runs with `make test-vllm`"))


def tokenizer() -> PreTrainedTokenizerFast:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: place for place, letter in enumerate(letters)} | {"<end>": END}
    words = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>")


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Heads of 64, the least that vLLM's attention on the CPU takes."""
    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=END + 1, hidden_size=128, intermediate_size=192, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=1024, initializer_range=0.2, bos_token_id=None, eos_token_id=END,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def make_folder(model_folder: Path) -> Callable[..., Path]:
    """Saves a random adapter as PEFT does; both of its matrices are filled, so that it changes every answer."""

    def make(folder: Path, seed: int, **fields: Any) -> Path:
        config = LoraConfig(init_lora_weights=False, **{"target_modules": LINEARS, "task_type": "CAUSAL_LM", **fields})
        model = get_peft_model(LlamaForCausalLM.from_pretrained(model_folder), config)
        torch.manual_seed(seed)
        for name, weight in model.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(weight, std=0.15)
        model.save_pretrained(folder)
        (folder / "README.md").unlink()
        return folder

    return make


@pytest.fixture(scope="session")
def servers(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[VllmServer]]:
    assert PYTHON.exists(), "make test-vllm builds .venv-vllm"
    with running(model_folder, tmp_path_factory.mktemp("vllm"), 2) as started:
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
def base_model(db_or_fresh: None, model_folder: Path) -> BaseModel:
    model = BaseModel.objects.create(slug="tiny", source="tiny")
    shutil.rmtree(model.folder, ignore_errors=True)
    shutil.copytree(model_folder, model.folder)
    model.inspect()
    return model


@pytest.fixture
def make_version(alice: User, tmp_path: Path, make_folder: Callable[..., Path]) -> Callable[..., AdapterVersion]:
    def make(adapter: Adapter, *, seed: int = 0, **fields: Any) -> AdapterVersion:
        folder = make_folder(tmp_path / f"{adapter.slug}-{seed}", seed, **({"r": 8, "lora_alpha": 16} | fields))
        return AdapterVersion.publish(adapter, folder, method="upload", by=alice.as_actor())

    return make
