"""Domain signals, with which a lower layer reports an event without knowing its receivers, sent on commit."""

from __future__ import annotations

from functools import partial
from typing import Any

from django.db import transaction
from django.dispatch import Signal

# Sent when a caller was refused a request, with `by` (Actor), `path` and `code`.
access_refused = Signal()


def send_on_commit(signal: Signal, **facts: Any) -> None:
    """Send the signal when the current transaction commits; after a rollback it is not sent."""
    transaction.on_commit(partial(signal.send, sender=None, **facts))
