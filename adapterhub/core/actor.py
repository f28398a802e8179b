"""Who does a verb: what the audit trail keeps about a person, a token or the system itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Actor:
    """`name` is frozen text, so that a renamed or removed account leaves the history readable."""

    name: str
    method: str
    # A row of the model of users, or None for a part of AdapterHub.
    user: Any = None
    token_id: str = ""
    request_id: str = ""


def system(part: str) -> Actor:
    """A part of AdapterHub that acts by itself, e.g. `system("reconciler")`."""
    return Actor(name=f"system:{part}", method="system")
