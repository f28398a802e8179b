"""The portable export on a real vLLM answers what PEFT answers from the original, token for token."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from peft import PeftModel
from transformers import LlamaForCausalLM

from registry.exports.export_process import export
from serving_client import EngineClient
from tests.byte_llama import END, tokenizer
from tests.vllm.server import VllmServer

PROMPT = "The bank shall report"
COUNT = 16
KINDS: dict[str, dict[str, Any]] = {
    "ranks 4 to 64": {
        "r": 8,
        "lora_alpha": 16,
        "rank_pattern": {"q_proj": 4, r"^model\.layers\.1\.mlp\.down_proj": 64, "mlp.up_proj": 12, "v_proj": 32},
    },
    "unequal alphas": {
        "r": 8,
        "lora_alpha": 16,
        "rank_pattern": {"o_proj": 16},
        "alpha_pattern": {"q_proj": 4, "o_proj": 48, r"^model\.layers\.0\.mlp\.gate_proj": 7},
    },
    "rsLoRA of mixed ranks": {"r": 16, "lora_alpha": 8, "use_rslora": True, "rank_pattern": {"k_proj": 5}},
}


def greedy(model: Any) -> list[int]:
    """The tokens that PEFT answers, without a cache."""
    ids = list(tokenizer()(PROMPT)["input_ids"])
    start = len(ids)
    with torch.inference_mode():
        for _ in range(COUNT):
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == END:
                break
    return ids[start:]


def answered(server: VllmServer, model: str) -> list[int]:
    """The tokens that vLLM answers."""
    body = {"model": model, "prompt": PROMPT, "max_tokens": COUNT, "temperature": 0, "return_token_ids": True}
    answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=60).raise_for_status().json()
    return list(answer["choices"][0]["token_ids"])


@pytest.mark.parametrize("kind", KINDS)
def test_peft_and_vllm_agree(
    kind: str, empty: list[VllmServer], model_folder: Path, make_folder: Callable[..., Path], tmp_path: Path
) -> None:
    original = make_folder(tmp_path / "original", 3, **KINDS[kind])
    export(original, tmp_path / "portable", "portable", "fp32")
    base: Any = LlamaForCausalLM.from_pretrained(model_folder)
    without = greedy(base)
    expected = greedy(PeftModel.from_pretrained(base, original))
    with EngineClient(empty[0].url, timeout_s=60) as client:
        client.load_adapter("portable", str(tmp_path / "portable"))
    assert answered(empty[0], "portable") == expected
    assert expected != without, "the adapter must matter to prove anything"
