"""A random Llama of 0.1 million weights that knows every byte, and PEFT adapters of many ranks for it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from serving_client.engine.api.app import create_app
from serving_client.engine.completion_request import parse_completion
from serving_client.engine.engine import Engine, Limits
from serving_client.engine.model import open_model

END = 256
CHAT = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

# What 8 teams may train: plain ranks, ranks and alphas for each module, rank-stabilised, a few modules only.
ADAPTERS: dict[str, dict[str, Any]] = {
    "rank-4": {"r": 4, "lora_alpha": 8},
    "rank-8": {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]},
    "rank-16": {"r": 16, "lora_alpha": 16},
    "rank-64": {"r": 64, "lora_alpha": 64},
    "patterns": {
        "r": 8,
        "lora_alpha": 16,
        "rank_pattern": {"q_proj": 4, r"^model\.layers\.1\.mlp\.down_proj": 32, "down_proj": 12},
        "alpha_pattern": {"q_proj": 8, r"layers\.0\.mlp\.\w+_proj": 4, "mlp.up_proj": 24},
    },
    "stabilised": {"r": 16, "lora_alpha": 8, "use_rslora": True},
    "attention": {"r": 32, "lora_alpha": 32, "target_modules": ["k_proj", "o_proj"]},
    "mlp": {"r": 6, "lora_alpha": 12, "target_modules": ["gate_proj", "up_proj", "down_proj"]},
}


def _tokenizer() -> PreTrainedTokenizerFast:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: place for place, letter in enumerate(letters)} | {"<end>": END}
    words = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>", chat_template=CHAT)


def _base() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=END + 1,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            initializer_range=0.2,
            bos_token_id=None,
            eos_token_id=END,
        )
    )


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    _base().save_pretrained(folder)
    _tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def make_adapter(base_folder: Path) -> Callable[..., Path]:
    """Saves a random adapter as PEFT does; both of its matrices are filled, so that it changes every answer."""

    def make(folder: Path, seed: int = 0, **fields: Any) -> Path:
        config = LoraConfig(init_lora_weights=False, **{"target_modules": LINEARS, **fields})
        model = get_peft_model(LlamaForCausalLM.from_pretrained(base_folder), config)
        torch.manual_seed(seed)
        for name, weight in model.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(weight, std=0.15)
        model.save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def adapters(tmp_path_factory: pytest.TempPathFactory, make_adapter: Callable[..., Path]) -> dict[str, Path]:
    """Name -> folder of the eight adapters."""
    root = tmp_path_factory.mktemp("adapters")
    return {name: make_adapter(root / name, seed, **fields) for seed, (name, fields) in enumerate(ADAPTERS.items())}


@pytest.fixture(scope="session")
def peft_tokens(base_folder: Path) -> Callable[..., list[int]]:
    """What PEFT answers, greedy and without a cache."""

    def tokens(prompt: list[int], count: int, adapter: Path | None = None, *, merged: bool = False) -> list[int]:
        model: Any = LlamaForCausalLM.from_pretrained(base_folder)
        if adapter:
            model = PeftModel.from_pretrained(model, adapter)
        if merged:
            model = model.merge_and_unload()
        ids = list(prompt)
        with torch.inference_mode():
            for _ in range(count):
                ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        return ids[len(prompt) :]

    return tokens


@pytest.fixture
def make_engine(base_folder: Path) -> Callable[..., Engine]:
    def make(device: str = "cpu", **limits: int) -> Engine:
        return Engine("tiny", open_model(str(base_folder), 512, device), Limits(**limits))

    return make


@pytest.fixture
def serve() -> Callable[[Engine], Any]:
    """An HTTP client of an engine that runs for as long as the block."""

    @asynccontextmanager
    async def serving(engine: Engine) -> AsyncIterator[httpx.AsyncClient]:
        app = create_app(engine)
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://e") as http,
        ):
            yield http

    return serving


@pytest.fixture
async def http(make_engine: Callable[..., Engine], serve: Callable[[Engine], Any]) -> AsyncIterator[httpx.AsyncClient]:
    async with serve(make_engine()) as client:
        yield client


@pytest.fixture(scope="session")
def greedy() -> Callable[..., Any]:
    """Tokens of one greedy answer, asked of the engine itself."""

    async def answer(engine: Engine, model: str, prompt: list[int], count: int) -> list[int]:
        body = {"model": model, "prompt": prompt, "max_tokens": count, "temperature": 0, "ignore_eos": True}
        begun = await engine.begin(parse_completion(body))
        return [token async for delta in begun.deltas() for token in delta.token_ids]

    return answer
