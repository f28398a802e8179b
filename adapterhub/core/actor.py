"""The actor of an operation, as the audit trail records it: a person, a token or the system itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Actor:
    """A person, a token or a part of AdapterHub that changes something.

    `name` is stored as text with each change, so that the history stays readable when an account is renamed or removed.
    `method` names the way of authentication, such as `session`, `oidc`, `token` or `system`. `token_id` and
    `request_id` are empty if there is none.
    """

    name: str
    method: str
    # A row of the user model, or None for a part of AdapterHub.
    user: Any = None
    token_id: str = ""
    request_id: str = ""


def system(part: str) -> Actor:
    """Return the actor for a part of AdapterHub that acts by itself, e.g. `system("reconciler")`."""
    return Actor(name=f"system:{part}", method="system")
