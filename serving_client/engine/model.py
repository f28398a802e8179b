"""Opening of a base model's folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from serving_client.engine.errors import ModelUnusable


@dataclass(frozen=True)
class BaseModel:
    """A causal language model with its tokenizer, end tokens, context length, and its longest token in characters."""

    folder: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    ends: frozenset[int]  # tokens that end an answer
    max_length: int
    longest_token: int  # characters

    @property
    def most_characters(self) -> int:
        """The most characters that a prompt can have: the context's length in tokens times the longest token."""
        return self.max_length * self.longest_token


def open_model(folder: str, max_length: int, device: str = "cpu", dtype: torch.dtype = torch.float32) -> BaseModel:
    """Open the model and tokenizer in a local folder, for inference only.

    `max_length` is the context in tokens; a model with a smaller one keeps its own. Raises ModelUnusable if the folder
    is incomplete or cannot be read, if the model has layers without full attention, or if there is no GPU for `cuda`.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ModelUnusable("PyTorch sees no GPU: install its CUDA build and a driver, or choose --device cpu.")
    if not (Path(folder) / "config.json").is_file():
        raise ModelUnusable(f"The folder '{folder}' holds no model: it needs config.json, weights and a tokenizer.")
    try:
        return _open(folder, max_length, torch.device(device), dtype)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ModelUnusable(f"The model in '{folder}' cannot be opened: {reason}") from error


def _open(folder: str, max_length: int, device: torch.device, dtype: torch.dtype) -> BaseModel:
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    _check(folder, config)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ModelUnusable(f"The model in '{folder}' has no tokenizer.json: save it with a fast tokenizer.")
    model: Any = _open_weights(folder, dtype).to(device)
    longest = max(map(len, tokenizer.get_vocab()))
    return BaseModel(folder, model, tokenizer, _ends(model, tokenizer), _length(config, max_length), longest)


def _open_weights(folder: str, dtype: torch.dtype) -> Any:
    opened: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, local_files_only=True, output_loading_info=True
    )
    model: PreTrainedModel = opened[0]
    missing = sorted(opened[1]["missing_keys"])
    # transformers fills weights that the files lack with random numbers, and only warns.
    if missing:
        raise ModelUnusable(f"The model in '{folder}' lacks the weights {', '.join(missing)}.")
    model.train(False).requires_grad_(False)
    return model


def _check(folder: str, config: PretrainedConfig) -> None:
    text = config.get_text_config()
    kinds = set(getattr(text, "layer_types", None) or ["full_attention"])
    window = getattr(text, "sliding_window", None) and "layer_types" not in text.to_dict()
    if kinds != {"full_attention"} or window:
        raise ModelUnusable(f"The model in '{folder}' has layers without full attention: serve it with vLLM.")


def _ends(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> frozenset[int]:
    configured = model.generation_config.eos_token_id if model.generation_config else None
    listed = configured if isinstance(configured, list) else [configured]
    return frozenset(token for token in (*listed, tokenizer.eos_token_id) if token is not None)


def _length(config: PretrainedConfig, max_length: int) -> int:
    return min(max_length, getattr(config.get_text_config(), "max_position_embeddings", max_length))
