"""A Llama of a few thousand weights with a tokenizer of forty words, made in a second."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

WORDS = [
    "<unk>",
    "<pad>",
    "<end>",
    "<user>",
    "<assistant>",
    "a",
    "the",
    "bank",
    "shall",
    "report",
    "each",
    "incident",
    "within",
    "four",
    "hours",
    "to",
    "its",
    "competent",
    "authority",
    "and",
    "keep",
    "records",
    "of",
    "every",
    "risk",
    "that",
    "may",
    "harm",
    "clients",
    "or",
    "markets",
    "unless",
    "exempt",
    "by",
    "law",
    "under",
    "article",
]
CHAT = (
    "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }} <end> {% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)


def make_tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", pad_token="<pad>", eos_token="<end>", chat_template=CHAT
    )


# The shape of SmolLM2, small: three heads on one key, tied embeddings.
SMOLLM2 = {"hidden": 24, "inner": 64, "num_attention_heads": 3, "num_key_value_heads": 1, "tie_word_embeddings": True}


def make_model(layers: int = 2, seed: int = 0, hidden: int = 16, inner: int = 24, **fields: Any) -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(WORDS),
            hidden_size=hidden,
            intermediate_size=inner,
            num_hidden_layers=layers,
            max_position_embeddings=128,
            initializer_range=0.2,
            pad_token_id=1,
            bos_token_id=None,
            eos_token_id=2,
            **{"num_attention_heads": 4, "num_key_value_heads": 2, **fields},
        )
    )


def save_base_model(folder: Path, layers: int = 2, **shape: Any) -> Path:
    make_model(layers, **shape).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def sentences(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Rows of 6 to 20 words, each a run of WORDS: easy to learn."""
    chance = random.Random(seed)
    rows = []
    for _ in range(count):
        start, length = chance.randrange(5, 20), chance.randrange(6, 20)
        rows.append({"text": " ".join(WORDS[start : start + length])})
    return rows


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
