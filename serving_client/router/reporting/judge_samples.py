"""Samples of answers for the hub's judge, encrypted for the hub alone; they expire after minutes in any case."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import Any

import orjson
import redis.asyncio as redis
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite
from redis.exceptions import RedisError

from serving_client.protocol import SAMPLES
from serving_client.reports import Sample

KEPT_S = 300
MOST = 200  # samples that wait; older ones are dropped
MOST_BYTES = 2**16  # bytes of a question; a longer one is not judged
SUITE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.CHACHA20_POLY1305)
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Samples:
    """The queue of sampled answers for the judge."""

    valkey: redis.Redis

    async def offer(self, sample: Sample, key: str) -> None:
        """Encrypt the sample with the hub's public key, in hexadecimal, and put it into Valkey for KEPT_S seconds.

        A sample is dropped if its question is too long or Valkey does not take it, which is logged; of more than MOST,
        the oldest are dropped.
        """
        content = await asyncio.to_thread(sealed, sample, key)
        if content is None:
            return
        # Encrypted, because Valkey's append-only log keeps the text after the key has expired.
        name = f"{SAMPLES}:{sample.response_id}"
        try:
            async with self.valkey.pipeline(transaction=False) as pipe:
                pipe.set(name, content, ex=KEPT_S)
                pipe.lpush(SAMPLES, name)
                pipe.ltrim(SAMPLES, 0, MOST - 1)
                await pipe.execute()
        except (RedisError, OSError) as error:
            log.warning("Valkey does not take a sample for the judge (%s).", type(error).__name__)


def sealed(sample: Sample, key: str) -> bytes | None:
    """Encrypt the sample with the public `key` (X25519, in hexadecimal); None if its question is over MOST_BYTES."""
    if len(orjson.dumps(sample.question)) > MOST_BYTES:
        return None
    return SUITE.encrypt(sample.to_json(), X25519PublicKey.from_public_bytes(bytes.fromhex(key)))


def question_of(body: dict[str, Any]) -> Any:
    """Return the messages of a chat, the input of a response, or the prompt, as the caller sent them."""
    return body.get("messages") or body.get("input") or body.get("prompt")
