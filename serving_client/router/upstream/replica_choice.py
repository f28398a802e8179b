"""The order in which the replicas of a version are asked: least loaded, or the one that has seen the prompt's start."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from typing import Any

import orjson

from serving_client.router.upstream.replica_load import ReplicaLoads

# Of a prompt's beginning: some 64 tokens, four blocks of vLLM's prefix cache. Who differs within it shares little.
PREFIX_CHARACTERS = 256
# A replica may have this many times the average of the requests in flight before others take its prefixes.
MOST_OF_AVERAGE = 1.25
# Requests in flight up to which a replica is not busy, whatever the average: it decodes them in one batch.
IDLE_REQUESTS = 4


def prefix_of(body: Mapping[str, Any]) -> str:
    """Return the first PREFIX_CHARACTERS of a request's prompt, messages or input, lists as JSON; empty without any."""
    content = body.get("prompt") or body.get("messages") or body.get("input") or ""
    if isinstance(content, str):
        return content[:PREFIX_CHARACTERS]
    if isinstance(content, list) and content and isinstance(content[0], dict):
        # What is said first may be a long system prompt: only as much as is needed is written.
        return orjson.dumps(first_messages(content)).decode()[:PREFIX_CHARACTERS]
    return orjson.dumps(content[:PREFIX_CHARACTERS]).decode()[:PREFIX_CHARACTERS] if isinstance(content, list) else ""


def first_messages(messages: Sequence[Any]) -> list[Any]:
    """Return the messages up to the first whose content has PREFIX_CHARACTERS or is no text; all if there is none."""
    for place, message in enumerate(messages):
        content = message.get("content") if isinstance(message, dict) else None
        if not isinstance(content, str) or len(content) >= PREFIX_CHARACTERS:
            return list(messages[: place + 1])
    return list(messages)


def least_loaded(replicas: Sequence[str], loads: ReplicaLoads, is_open: Callable[[str], bool]) -> list[str]:
    """Return the replicas by load, equals in random order, those with an open breaker last."""
    shuffled = random.sample(replicas, len(replicas))
    return sorted(shuffled, key=lambda url: (is_open(url), loads.of(url)))


def by_prefix(key: str, replicas: Sequence[str], loads: ReplicaLoads, is_open: Callable[[str], bool]) -> list[str]:
    """Return the replicas by rendezvous hashing of the key, those that are busy or have an open breaker last.

    All routers compute the same order, and a replica that comes or goes moves only its own keys. A replica is busy
    above MOST_OF_AVERAGE of the requests in flight; busy ones follow by their load (consistent hashing with bounded
    loads).
    """
    in_flight = loads.in_flight
    most = max(IDLE_REQUESTS, MOST_OF_AVERAGE * (1 + sum(in_flight[url] for url in replicas)) / len(replicas))
    place = {url: score(key, url) for url in replicas}

    def order(url: str) -> tuple[bool, bool, int, int]:
        is_busy = in_flight[url] + 1 > most
        return is_open(url), is_busy, loads.of(url) if is_busy else 0, place[url]

    return sorted(replicas, key=order)


def score(key: str, url: str) -> int:
    """Return the same pseudorandom number for a key and a replica in every process."""
    return int.from_bytes(blake2b(f"{url}|{key}".encode(errors="replace"), digest_size=8).digest())
