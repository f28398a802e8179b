"""Domain signals, with which a lower layer reports an event without knowing its receivers, sent on commit."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from django.db import transaction
from django.dispatch import Signal

# Sent when a caller was refused a request, with `by` (Actor), `path` and `code`.
access_refused = Signal()
# Sent when a token was approved, by the process that asked the signer.
token_approved = Signal()
# Each disconnects a receiver, which the signer's process does without: web does that work after it has asked.
LEFT_TO_WEB: list[Callable[[], object]] = []


def send_on_commit(signal: Signal, **facts: Any) -> None:
    """Send the signal with these facts when the current transaction commits; after a rollback it is not sent.

    Outside a transaction it is sent at once.
    """
    transaction.on_commit(partial(signal.send, sender=None, **facts))
