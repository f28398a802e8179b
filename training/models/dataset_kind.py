"""The kind of rows that a dataset holds, and the jobs that read it."""

from __future__ import annotations

from typing import Any

from django.db import models

from adapterhub.core.errors import Invalid
from training.datasets.preferences import kind_of
from training.models.preference_methods import HOLDS, require_kind


class KindMixin(models.Model):
    """The kind of a dataset's rows, by its columns. Until the check has told these, every method takes it."""

    columns: Any

    class Meta:
        abstract = True

    @property
    def kind(self) -> str:
        """Return what the rows hold: `answers`, `pairs`, or `labels` (answers marked good or bad)."""
        return kind_of(self.columns)

    def require_answers(self) -> None:
        """Raise Invalid for preference data, which only the methods that learn from it read."""
        if self.kind != "answers":
            message = f"{self} holds {HOLDS[self.kind]}, but this job needs one answer a row."
            raise Invalid(message, field="dataset", code="preference_data")

    def require_for(self, method: str, field: str = "dataset") -> None:
        """Raise Invalid for rows of another kind than the training method learns from."""
        if self.columns:
            require_kind(method, self.kind, str(self), field)
