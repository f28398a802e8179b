"""The kind of rows that a dataset holds, and the jobs that read it."""

from __future__ import annotations

from typing import Any

from django.db import models

from adapterhub.core.errors import Invalid
from training.datasets.preferences import kind_of
from training.models.preference_methods import HOLDS, require_kind


class KindMixin(models.Model):
    """The kind of a dataset's rows, derived from its columns."""

    columns: Any

    class Meta:
        abstract = True

    @property
    def kind(self) -> str:
        """Return the kind of the rows: `answers`, `pairs`, or `labels` (answers marked good or bad)."""
        return kind_of(self.columns)

    def require_answers(self) -> None:
        """Check that the dataset holds answers. Raises Invalid for preference data, which most jobs cannot read."""
        if self.kind != "answers":
            message = (
                f"{self} holds {HOLDS[self.kind]}, but this job needs one answer for each row: choose another dataset."
            )
            raise Invalid(message, field="dataset", code="preference_data")

    def require_for(self, method: str, field: str = "dataset") -> None:
        """Check that the method learns from this kind of rows; while the columns are unknown, every method passes.

        Raises Invalid, which blames `field`.
        """
        if self.columns:
            require_kind(method, self.kind, str(self), field)
