"""Who does a verb: what the audit trail keeps about a person, a token or the system itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from adapterhub.accounts.models import User


@dataclass(frozen=True)
class Actor:
    """`name` is frozen text, so that a renamed or removed account leaves the history readable."""

    name: str
    method: str
    user: User | None = None
    token_id: str = ""
    request_id: str = ""


def system(part: str) -> Actor:
    """A part of AdapterHub that acts by itself, e.g. `system("reconciler")`."""
    return Actor(name=f"system:{part}", method="system")
