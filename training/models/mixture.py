"""The datasets of a run beside its own: those mixed in, stored by number and weight, and the one to evaluate on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from django.db import models

from adapterhub.core.errors import Invalid
from training.models.dataset import Dataset, DatasetStatus

FIELD = "mixture"
MOST_DATASETS = 20


@dataclass(frozen=True)
class Mixed:
    """A dataset of a run, and its weight relative to the run's own dataset, whose weight is 1."""

    dataset: Dataset
    weight: float


def checked_mixture(mixture: Sequence[Mixed], dataset: Dataset, method: str) -> list[dict[str, Any]]:
    """Return the mixture in the form in which it is stored, [{dataset: number, weight}].

    `dataset` is the run's own. Raises Invalid for a dataset that cannot be mixed in or is named twice, and for a wrong
    weight.
    """
    if len(mixture) > MOST_DATASETS:
        raise Invalid(f"A mixture has at most {MOST_DATASETS} datasets beside the run's own.", field=FIELD)
    seen = {dataset.pk}
    for place, part in enumerate(mixture):
        check(part, f"{FIELD}.{place}", dataset, method)
        if part.dataset.pk in seen:
            message = f"{part.dataset} is named twice: give each dataset once, with the weight that it should have."
            raise Invalid(message, field=f"{FIELD}.{place}.dataset", code="dataset_twice")
        seen.add(part.dataset.pk)
    return [{"dataset": part.dataset.pk, "weight": part.weight} for part in mixture]


def check(part: Mixed, field: str, dataset: Dataset, method: str) -> None:
    """Check a part of a mixture: its dataset is ready, of the project and a fitting kind, its weight at most 1000.

    The weight must be above 0. Raises Invalid, which blames `field`.
    """
    if part.dataset.project_id != dataset.project_id:
        raise Invalid(f"{part.dataset} belongs to another project.", field=f"{field}.dataset", code="unknown_dataset")
    if part.dataset.status != DatasetStatus.READY:
        message = f"{part.dataset} is {part.dataset.status}, not ready."
        raise Invalid(message, field=f"{field}.dataset", code="dataset_not_ready")
    part.dataset.require_for(method, f"{field}.dataset")
    if not math.isfinite(part.weight) or not 0 < part.weight <= 1000:
        message = f"weight is {part.weight}; it must lie between 0 and 1000: the run's own dataset has 1."
        raise Invalid(message, field=f"{field}.weight", code="bad_weight")


def require_validation(validation: Dataset, dataset: Dataset, method: str) -> None:
    """Check that a validation dataset is ready, of a kind that the method reads, and not the training data.

    Raises Invalid.
    """
    field = "validation_dataset"
    if validation.pk == dataset.pk:
        raise Invalid("The validation dataset is the one that is trained on: name another.", field=field)
    if validation.status != "ready":
        raise Invalid(f"{validation} is {validation.status}, not ready.", field=field, code="dataset_not_ready")
    validation.require_for(method, field)


class MixtureMixin(models.Model):
    """The datasets that a run mixes in beside its own `dataset`, and perhaps a `validation_dataset`."""

    mixture = models.JSONField(
        default=list,
        db_default=[],
        blank=True,
        help_text="Datasets beside the first, whose weight is 1: dataset, weight.",
    )
    dataset: Any
    validation_dataset: Any

    class Meta:
        abstract = True

    def parts(self) -> list[Mixed]:
        """Return all datasets that the run reads, with their weights; its own, of weight 1, comes first."""
        datasets = Dataset.objects.in_bulk([part["dataset"] for part in self.mixture])
        return [Mixed(self.dataset, 1.0), *(Mixed(datasets[part["dataset"]], part["weight"]) for part in self.mixture)]

    def mixed_digests(self) -> list[dict[str, Any]]:
        """Return the digests and weights of the datasets that are mixed in."""
        return [{"dataset": part.dataset.digest, "weight": part.weight} for part in self.parts()[1:]]

    def mixed_files(self) -> list[dict[str, Any]]:
        """Return the datasets that are mixed in, as the run file has them: {name, train, weight, eval}.

        `train` and `eval` are paths of local files; missing ones are fetched. `eval` is left out if the run has a
        validation dataset.
        """
        files = []
        for part in self.parts()[1:]:
            data = part.dataset.folder()
            held_out = {} if self.validation_dataset else {"eval": str(data / "eval.jsonl")}
            name = f"{part.dataset} ({part.dataset.pk})"
            files.append({"name": name, "train": str(data / "train.jsonl"), "weight": part.weight, **held_out})
        return files
