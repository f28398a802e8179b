"""Record, during a request, of committed changes that have not reached the routers."""

from __future__ import annotations

from contextvars import ContextVar

_is_unpublished = ContextVar("is_unpublished", default=False)


def begin_request() -> None:
    """Clear the mark of unpublished changes, which an earlier request of this thread may have left set."""
    _is_unpublished.set(False)


def note_unpublished() -> None:
    """Mark that a change is committed, but that the routers have not heard of it yet."""
    _is_unpublished.set(True)


def is_unpublished() -> bool:
    """Return True if `note_unpublished` was called since this request began."""
    return _is_unpublished.get()
