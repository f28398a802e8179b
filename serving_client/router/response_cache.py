"""Cache of answers in Valkey for aliases that enable it; a hit needs the same project, version and request."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable
from typing import Any, cast

import orjson
import redis.asyncio as redis

from serving_client.protocol import CACHE, CacheRule, RoutingTable
from serving_client.request_annotations import ANNOTATIONS
from serving_client.router.fail_fast import Patience
from serving_client.router.request_fields import Body
from serving_client.router.resolve import Target

# Fields that change who receives an answer or how the engine sends it, but not its content.
NOT_OF_THE_ANSWER = {"model", *ANNOTATIONS}

# Index: members "<bytes>:<key>" sorted by their time of expiry; another key holds the sum of their bytes.
# One atomic script, so that two routers cannot both use the last free bytes.
KEEP = """
local now, size = tonumber(redis.call('TIME')[1]), #ARGV[1]
local ttl, cap = tonumber(ARGV[2]), tonumber(ARGV[3])
local function forget(member)
  redis.call('ZREM', KEYS[2], member)
  local bytes, key = string.match(member, '^(%d+):(.*)$')
  redis.call('DEL', key)
  return tonumber(bytes)
end
local total = tonumber(redis.call('GET', KEYS[3]) or '0')
for _, member in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now)) do total = total - forget(member) end
local held = redis.call('STRLEN', KEYS[1])
if held > 0 then total = total - forget(held .. ':' .. KEYS[1]) end
while total + size > cap do
  local oldest = redis.call('ZRANGE', KEYS[2], 0, 0)[1]
  if not oldest then total = 0 break end
  total = total - forget(oldest)
end
redis.call('SET', KEYS[1], ARGV[1], 'EX', ttl)
redis.call('ZADD', KEYS[2], now + ttl, size .. ':' .. KEYS[1])
redis.call('SET', KEYS[3], total + size)
redis.call('EXPIRE', KEYS[2], ttl)
redis.call('EXPIRE', KEYS[3], ttl)
return total + size
"""


class Entry:
    """An answer being collected for the cache; it is discarded when it exceeds the rule's bytes."""

    def __init__(self, key: str, rule: CacheRule) -> None:
        self.key, self.rule = key, rule
        self._parts: list[bytes] = []
        self._room = rule.max_bytes

    def saw(self, chunk: bytes) -> None:
        """Add a chunk of the answer; discard all chunks once they exceed the rule's bytes."""
        self._room -= len(chunk)
        if self._room >= 0:
            self._parts.append(chunk)
        else:
            self._parts.clear()

    def answer(self) -> bytes:
        """Return the collected bytes; empty if they exceeded the limit."""
        return b"".join(self._parts)


class ResponseCache:
    """Cache of whole answers. `get` and `keep` never raise: while Valkey is away every request is a miss."""

    def __init__(self, valkey: redis.Redis) -> None:
        self._valkey = valkey
        self._keep = valkey.register_script(KEEP)
        self._patience = Patience()
        self._keeping: set[asyncio.Task[None]] = set()

    async def get(self, key: str) -> bytes | None:
        """Return the bytes of a whole answer; None for a miss, and while Valkey is away."""
        return await self._patience.ask(lambda: cast("Awaitable[bytes | None]", self._valkey.get(key)))

    async def keep(self, key: str, answer: bytes, rule: CacheRule) -> None:
        """Store an answer for rule.ttl_s, evicting the alias' oldest; one over the byte limit is not stored."""
        if not 0 < len(answer) <= rule.max_bytes:
            return
        index = key.rpartition(":")[0]
        keys = [key, f"{index}:index", f"{index}:bytes"]
        await self._patience.ask(lambda: cast("Awaitable[int]", self._keep(keys, [answer, rule.ttl_s, rule.max_bytes])))

    def keep_soon(self, entry: Entry) -> None:
        """Store a collected answer in a background task and return at once; one over the byte limit is not stored."""
        task = asyncio.create_task(self.keep(entry.key, entry.answer(), entry.rule))
        self._keeping.add(task)
        task.add_done_callback(self._keeping.discard)


def rule_for(table: RoutingTable, target: Target, body: Body) -> CacheRule | None:
    """Return the alias' cache rule if this request may be answered from the cache, else None.

    Only answers that an engine would repeat are cached: with temperature 0 or a seed. During a rollout nothing is
    cached, because its arms are measured, and a stored answer would be measured in place of the engine's.
    """
    alias = table.alias(target.project, target.alias)
    if alias is None or target.arm != "none" or target.version not in table.versions or not is_repeatable(body):
        return None
    return alias.cache


def is_repeatable(body: Body) -> bool:
    """Return True if the same request has the same answer: temperature 0 or a seed."""
    temperature, seed = body.get("temperature"), body.get("seed")
    is_greedy = isinstance(temperature, int | float) and not isinstance(temperature, bool) and temperature == 0
    return is_greedy or (isinstance(seed, int) and not isinstance(seed, bool))


def key_of(table: RoutingTable, target: Target, path: str, body: Body) -> str:
    """Return the cache key: project and alias, then a hash of all that determines the answer.

    Project and alias are in braces, so that an alias' keys are in one slot of a cluster. The hash covers the version
    with its base model and files, the API's path, and the request in a canonical form without the fields that change no
    answer.
    """
    version = table.versions[target.version]
    canonical_body: dict[str, Any] = {name: value for name, value in body.items() if name not in NOT_OF_THE_ANSWER}
    decides = [target.project, version.base, version.digest, target.version, path, canonical_body]
    digest = hashlib.sha256(orjson.dumps(decides, option=orjson.OPT_SORT_KEYS)).hexdigest()
    return f"{CACHE}:{{{target.project}:{target.alias}}}:{digest}"
