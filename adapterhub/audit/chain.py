"""The hash chain: pure functions over canonical bytes, shared by the recorder and the verifier."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

DOMAIN = b"adapterhub.audit.v1\n"
GENESIS = b"\0" * 32


@dataclass(frozen=True)
class Link:
    """One stored event: its place in the chain, its canonical bytes (RFC 8785) and both hashes (32 bytes)."""

    sequence: int
    canonical: bytes
    prev_hash: bytes
    hash: bytes


@dataclass(frozen=True)
class Fault:
    """The first place where a chain does not hold; kind is `gap` or `edited`."""

    sequence: int
    kind: str


def link_hash(prev_hash: bytes, canonical: bytes) -> bytes:
    """sha256(domain | prev_hash | canonical bytes)."""
    return hashlib.sha256(DOMAIN + prev_hash + canonical).digest()


def faults(links: Iterable[Link]) -> Iterator[Fault]:
    """Walk a chain in the order of its sequence; yields each place that does not hold."""
    expected, prev_hash = 1, GENESIS
    for link in links:
        if link.sequence != expected:
            yield Fault(expected, "gap")
        elif not holds(link, prev_hash):
            yield Fault(link.sequence, "edited")
        expected, prev_hash = link.sequence + 1, link.hash


def holds(link: Link, prev_hash: bytes) -> bool:
    """True when the link continues `prev_hash` and its bytes say what it claims."""
    return (
        link.prev_hash == prev_hash
        and link.hash == link_hash(prev_hash, link.canonical)
        and json.loads(link.canonical)["sequence"] == link.sequence
    )
