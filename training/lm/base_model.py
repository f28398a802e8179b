"""Loading of the base model, its tokenizer, and rows as token sequences, for all programs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from training.lm import token_sequences
from training.lm.error_reporting import BadInput

Choose = Callable[[Sequence[token_sequences.Row]], Sequence[token_sequences.Row]]


def on_gpu() -> bool:
    """Return True if CUDA is available."""
    return torch.cuda.is_available()


def load_tokenizer(folder: Path) -> Any:
    """Load the folder's tokenizer; if it has no padding token, its end token or else the token 0 becomes that.

    Padding is masked everywhere, so that any token can stand for it.
    """
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    return tokenizer


def load_model(folder: Path, device: str | None = None) -> Any:
    """Load the model in bfloat16 if there is a GPU, else in float32, and put it on `device`, by default GPU or CPU."""
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    dtype = torch.bfloat16 if on_gpu() else torch.float32
    model: Any = AutoModelForCausalLM.from_pretrained(str(folder), dtype=dtype)
    return model.to(device or ("cuda" if on_gpu() else "cpu"))


def load_named(model: str, flag: str) -> tuple[Any, Any]:
    """Load (tokenizer, model) from a folder or a hub id.

    Raises BadInput, which names the command-line `flag`, for anything else, and if they cannot be loaded.
    """
    if not (Path(model) / "config.json").is_file() and (Path(model).exists() or model.count("/") != 1):
        raise BadInput(f"{flag}: {model} is neither a model's folder nor a hub id (owner/name).")
    try:
        return load_tokenizer(Path(model)), load_model(Path(model))
    except OSError as error:
        raise BadInput(f"{flag}: {model} cannot be loaded: {str(error).splitlines()[0]}") from None


def sequences_of(
    path: Path,
    field: str,
    tokenizer: Any,
    max_length: int,
    choose: Choose = lambda rows: rows,
    most: int | None = None,
    cuts: token_sequences.Cuts | None = None,
    loss: str = token_sequences.ANSWERS,
) -> list[token_sequences.TokenSequence]:
    """Return the rows of a file that `choose` selects as token sequences, at most `most` of them; None is no limit.

    `max_length` is in tokens, `cuts` counts what it cuts, and `loss` is one of LOSSES. Raises BadInput that names
    `field`: for a file or a row that cannot be used (with the row's line), and if no completion begins within
    `max_length`.
    """
    try:
        sequences = token_sequences.tokenised(
            choose(token_sequences.read_rows(path)), tokenizer, max_length, most, cuts, loss
        )
    except token_sequences.DataError as error:
        raise BadInput(f"{field}: {error}") from None
    if not sequences:
        raise BadInput(f"{field}: no completion of {path.name} begins within max_length tokens; raise max_length.")
    return sequences
