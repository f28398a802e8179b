"""Errors of calls from the control plane to one replica.

EngineError
  EngineUnreachable      no answer: connection refused, reset or timed out
  EngineFailed           an answer that says the engine is broken
  EngineRejected         the same call will fail again: bad adapter, rank too high
    AdapterAlreadyLoaded the name is taken on this replica
    AdapterNotLoaded     the name is not known on this replica
"""

from __future__ import annotations

LONGEST_TEXT = 500
BROKEN_WEIGHTS = "The version computes numbers that are not finite: check its weights."
# Words of engines -> the sentence that stands for them.
KNOWN_CAUSES = (
    ("max_lora_rank", "The version's rank is above the engine's --max-lora-rank."),
    ("No adapter found", "The engine does not find the version's files: mount the folder of served versions there."),
    ("NaN", BROKEN_WEIGHTS),
    ("finite", BROKEN_WEIGHTS),
    ("does not list it", "The engine says that it has loaded the version and does not list it: restart the engine."),
)


class EngineError(Exception):
    """Base class of all failures of a call to a replica. Its text may hold words of the engine's answer.

    What answers at a typed-in address may be no engine: show `reason` to whoever typed it in, and `engine_text` to
    operators.
    """

    sentence = "The call failed."

    @property
    def reason(self) -> str:
        """A fixed sentence on the failure, which repeats nothing of the engine's answer."""
        return self.sentence

    @property
    def engine_text(self) -> str:
        """The engine's own words, cut to 500 characters."""
        return str(self)[:LONGEST_TEXT]


class EngineUnreachable(EngineError):
    """The replica did not answer."""

    sentence = "It does not answer."


class EngineFailed(EngineError):
    """The replica answered that it is overloaded or broken, or not as an engine does; a later call may succeed."""

    sentence = "It answers, but not as a working engine. The log of the control loop has its words."


class EngineRejected(EngineError):
    """The replica refused the request permanently: the same call will fail again."""

    sentence = "The engine refused the version. The log of the control loop has its words."

    @property
    def reason(self) -> str:
        """A fixed sentence on the refusal's cause if it is a known one, else the general one."""
        return next((sentence for words, sentence in KNOWN_CAUSES if words in str(self)), self.sentence)


class AdapterAlreadyLoaded(EngineRejected):
    """The replica holds an adapter of this name."""


class AdapterNotLoaded(EngineRejected):
    """The replica holds no adapter of this name."""
