"""A domain's text as blocks of tokens, split by document: no document is in both training and held-out blocks."""

from __future__ import annotations

import lzma
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# Tokens held out of every domain for the comparison, in blocks.
HELD_OUT = 128
SPLIT_SEED = 20261123


@dataclass(frozen=True)
class Corpus:
    """(S, length + 1) blocks each, the last token of a block only predicted; `documents` are those of `train`."""

    train: Tensor
    held_out: Tensor
    documents: list[str]

    def batches(self, seed: int, size: int) -> Iterator[Tensor]:
        """Endless batches, reshuffled every epoch. (size, length + 1)"""
        generator = torch.Generator().manual_seed(seed)
        while True:
            order = torch.randperm(len(self.train), generator=generator)
            yield from self.train[order[: len(order) // size * size]].split(size)


def documents(folder: Path, domain: str) -> list[str]:
    """The documents of DOMAIN.txt or DOMAIN.txt.xz, in an order that the split's seed fixes."""
    path = folder / f"{domain}.txt"
    text = path.read_text() if path.exists() else lzma.decompress((folder / f"{domain}.txt.xz").read_bytes()).decode()
    texts = [part.strip() for part in text.split("\f") if part.strip()]
    random.Random(SPLIT_SEED).shuffle(texts)
    return texts


def load(folder: Path, domain: str, tokenizer: Any, length: int, device: str, most: int = 1_200_000) -> Corpus:
    """Documents joined by the end-of-sequence token and cut into blocks; at most about `most` training tokens."""
    texts = documents(folder, domain)
    streams = Stream(texts, tokenizer)
    held_out = blocks(streams, length, HELD_OUT)
    used = streams.taken
    train = blocks(streams, length, most // length)
    return Corpus(train.to(device), held_out.to(device), texts[used : streams.taken])


class Stream:
    """Token lists of documents, counting how many were taken."""

    def __init__(self, texts: Sequence[str], tokenizer: Any) -> None:
        self.ids = tokens(texts, tokenizer)
        self.taken = 0

    def __iter__(self) -> Iterator[list[int]]:
        for ids in self.ids:
            self.taken += 1
            yield ids


def tokens(texts: Sequence[str], tokenizer: Any) -> Iterator[list[int]]:
    for start in range(0, len(texts), 256):
        for ids in tokenizer(texts[start : start + 256])["input_ids"]:
            yield [*ids, tokenizer.eos_token_id]


def blocks(documents_ids: Stream, length: int, count: int) -> Tensor:
    """Up to `count` blocks; the document that the last one ends in is used up."""
    stream: list[int] = []
    for ids in documents_ids:
        stream += ids
        if len(stream) >= count * (length + 1):
            break
    whole = min(count, len(stream) // (length + 1))
    return torch.tensor(stream[: whole * (length + 1)]).view(whole, length + 1)
