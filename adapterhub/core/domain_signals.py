"""Domain signals, with which a lower layer reports an event without knowing its receivers, sent on commit."""

from __future__ import annotations

from functools import partial
from typing import Any

from django.db import transaction
from django.dispatch import Signal

# `by`, `path`, `code`: a caller was refused a request.
access_refused = Signal()


def send_on_commit(signal: Signal, **facts: Any) -> None:
    """Send the signal when the present transaction is committed; a rollback sends none."""
    transaction.on_commit(partial(signal.send, sender=None, **facts))
