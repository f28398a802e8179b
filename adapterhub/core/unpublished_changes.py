"""Record, during a request, of committed changes that have not reached the routers."""

from __future__ import annotations

from contextvars import ContextVar

_is_unpublished = ContextVar("is_unpublished", default=False)


def begin_request() -> None:
    """Forget what an earlier request of this thread left behind."""
    _is_unpublished.set(False)


def note_unpublished() -> None:
    """Record that a change is committed, and that the routers will hear of it later."""
    _is_unpublished.set(True)


def is_unpublished() -> bool:
    """Return True if a change of this request waits to be published."""
    return _is_unpublished.get()
