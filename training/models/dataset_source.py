"""The source of a dataset that is in a bucket or on a hub, and the bytes that were read there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import models

from adapterhub.artifacts import S3Store
from training.datasets import remote
from training.datasets.remote import Source

FIELDS = ("url", "revision", "config", "split")


class SourceMixin(models.Model):
    """A dataset that may come from a bucket or a hub.

    `source` has its address and, under `read`, which bytes a worker read there; it is empty for an uploaded file.
    """

    source = models.JSONField(
        default=dict,
        db_default={},
        editable=False,
        help_text="Where a dataset of a bucket or a hub lies, and the bytes read there.",
    )
    project: Any
    size_bytes: Any

    class Meta:
        abstract = True

    def fetched(self, folder: Path) -> Path:
        """Copy the content of the source to a file in the folder and return its path.

        `source` and `size_bytes` then say which bytes these are, without being saved. Raises Invalid if operators do
        not allow the source or it cannot be read.
        """
        source, target = Source(**{name: self.source[name] for name in FIELDS}), folder / "rows"
        # What operators allow may have changed since the dataset was asked for.
        source.require_allowed(self.project.slug)
        if source.is_hub:
            origin = remote.brought_from_hub(source, target, folder)
        else:
            bucket, _, key = source.url.removeprefix("s3://").partition("/")
            there = S3Store(bucket, "", settings.S3_ENDPOINT_URL, settings.S3_ADDRESSING)
            origin = remote.brought_from_bucket(source, there, key, target)
        self.source, self.size_bytes = {**self.source, "read": origin.facts()}, origin.size
        return target
