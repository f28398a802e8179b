"""Token buckets: scripts for one that all processes share in Valkey, and one local to a process."""

from __future__ import annotations

from serving_client.protocol import RateLimit

# Level and time (seconds) of a bucket in one hash; by Valkey's clock, as the clocks of processes may differ.
# Returns the milliseconds until a token is available (0 = taken), and the number of whole tokens left.
TAKE = """
local rate, burst = tonumber(ARGV[1]), tonumber(ARGV[2])
local clock = redis.call('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1e6
local held = redis.call('HMGET', KEYS[1], 'level', 'at')
local level = math.min(burst, (tonumber(held[1]) or burst) + math.max(0, now - (tonumber(held[2]) or now)) * rate)
local wait = 0
if level >= 1 then level = level - 1 else wait = math.ceil((1 - level) / rate * 1000) end
redis.call('HSET', KEYS[1], 'level', tostring(level), 'at', string.format('%.6f', now))
redis.call('PEXPIRE', KEYS[1], math.ceil((burst - level) / rate * 1000) + 1000)
return {wait, math.floor(level)}
"""

# Takes ARGV[3] more tokens than there may be: the level goes below zero, and TAKE waits until it is above again.
CHARGE = """
local rate, burst, spent = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local clock = redis.call('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1e6
local held = redis.call('HMGET', KEYS[1], 'level', 'at')
local level = math.min(burst, (tonumber(held[1]) or burst) + math.max(0, now - (tonumber(held[2]) or now)) * rate)
level = level - spent
redis.call('HSET', KEYS[1], 'level', tostring(level), 'at', string.format('%.6f', now))
redis.call('PEXPIRE', KEYS[1], math.ceil((burst - level) / rate * 1000) + 1000)
return 1
"""


class Bucket:
    """A token bucket local to this process, full at the start; `now` in seconds of any monotonic clock."""

    def __init__(self, limit: RateLimit, now: float) -> None:
        self.level, self._at = float(limit.burst), now

    def take(self, limit: RateLimit, now: float) -> float:
        """Take a token and return 0, or return the seconds until one is available."""
        self.level = min(limit.burst, self.level + (now - self._at) * limit.per_s)
        self._at = now
        if self.level < 1:
            return (1 - self.level) / limit.per_s
        self.level -= 1
        return 0.0

    def charge(self, limit: RateLimit, now: float, spent: float) -> None:
        """Take `spent` tokens at once; the level may fall below zero."""
        self.level = min(limit.burst, self.level + (now - self._at) * limit.per_s) - spent
        self._at = now
