"""A tokenizer of bytes with any chat template, whose tags are tokens of their own."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

TAGS = re.compile(r"<[|\uff5c][^<>\s{}]+?[|\uff5c]>|</?(?:start|end)_of_\w+>|<\|turn>|<turn\|>|\[gMASK\]|<sop>")
SPEC = find_spec("trl")
FOLDER = Path(str(SPEC and (SPEC.submodule_search_locations or [""])[0])) / "chat_templates"
TEMPLATES = {path.stem: path for path in sorted(FOLDER.glob("*.jinja"))}


def byte_tokenizer(template: str) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {letter: place for place, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    letters = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    letters.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    letters.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=letters, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": sorted(set(TAGS.findall(template)))})
    tokenizer.chat_template = template
    return tokenizer


def trl_tokenizer(name: str) -> Any:
    return byte_tokenizer(TEMPLATES[name].read_text())


def counted_runs(sequence: Any, tokenizer: Any) -> list[str]:
    """The texts that the loss counts, each without a gap."""
    runs: list[list[int]] = [[]]
    for label in sequence.labels:
        if label == -100:
            runs.append([])
        else:
            runs[-1].append(label)
    return [tokenizer.decode(run) for run in runs if run]
