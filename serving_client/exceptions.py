"""Errors of calls from the control plane to one replica.

EngineError
  EngineUnreachable      no answer: connection refused, reset or timed out
  EngineFailed           an answer that says the engine is broken
  EngineRejected         the same call will fail again: bad adapter, rank too high
    AdapterAlreadyLoaded the name is taken on this replica
    AdapterNotLoaded     the name is not known on this replica
"""

from __future__ import annotations


class EngineError(Exception):
    """Base class of all failures of a call to a replica."""


class EngineUnreachable(EngineError):
    """The replica did not answer."""


class EngineFailed(EngineError):
    """The replica answered that it is broken."""


class EngineRejected(EngineError):
    """The replica refused the request permanently: the same call will fail again."""


class AdapterAlreadyLoaded(EngineRejected):
    """The replica holds an adapter of this name."""


class AdapterNotLoaded(EngineRejected):
    """The replica holds no adapter of this name."""
