"""The kinds of records that people sign; each application adds its own when it starts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from django.core.exceptions import ValidationError
from django.db import models

from adapterhub.core.errors import Invalid

KINDS: dict[str, Kind] = {}


@dataclass(frozen=True)
class Kind:
    """A model whose rows people decide about, through the signer process if there is one.

    `carry_out(record, verb, **fields)` decides. `follow_up(record)` runs in the process that asked, once the decision
    is committed: the signer has no access to Valkey or the artifact store. `verbs` and `fields` are all that are
    allowed.
    """

    model: type[models.Model]
    verbs: tuple[str, ...]
    carry_out: Callable[..., None]
    follow_up: Callable[[Any], None]
    fields: tuple[str, ...] = ("reason", "meaning")

    def record(self, key: str) -> Any:
        """Return the row with this key. Raises Invalid if there is none."""
        try:
            record = self.model._default_manager.filter(pk=key).first()
        except (ValueError, ValidationError):
            record = None
        if record is None:
            raise Invalid(f"There is no such {self.model._meta.verbose_name}.", field="record")
        return record

    def require(self, verb: str, fields: dict[str, Any]) -> None:
        """Raise Invalid unless rows of this kind have the verb, with these fields."""
        if verb not in self.verbs or not set(fields) <= set(self.fields):
            raise Invalid(f"The decision is incomplete: {self.model._meta.verbose_name} takes {', '.join(self.verbs)}.")


def by_method(record: Any, verb: str, **fields: Any) -> None:
    """Decide by calling the record's method that has the verb's name."""
    getattr(record, verb)(**fields)


def kind_of(record: models.Model) -> tuple[str, Kind]:
    """Return the name and the kind of a record. Raises StopIteration for a model that nobody signs."""
    return next((name, kind) for name, kind in KINDS.items() if kind.model is type(record))
