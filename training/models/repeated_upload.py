"""Files that are sent again: the sha256 by which a dataset is found without its file, and datasets of equal content."""

from __future__ import annotations

from typing import Any, Self, cast

from django.db import models

from adapterhub.accounts.models import Project
from training.datasets.uploads import known_format


class RepeatedUploadMixin(models.Model):
    """The file from which a dataset was made, by its sha256.

    Two files may have the same content, which is one dataset.
    """

    file_digest = models.CharField(
        max_length=64,
        blank=True,
        default="",
        db_default="",
        db_index=True,
        help_text="sha256 of the file as it was sent",
    )
    same_as = models.ForeignKey(
        "self", models.PROTECT, null=True, editable=False, related_name="+", help_text="Who has the same content."
    )

    class Meta:
        abstract = True

    def sent_before(self) -> Self | None:
        """Return the dataset of the same file, read in the same way, that is ready or being checked; None without one.

        Raises Invalid if its content was erased.
        """
        how = ("project", "file_digest", "format", "mapping", "encoding", "escape")
        alike: Any = type(self)._default_manager.filter(**{name: getattr(self, name) for name in how})
        for one in alike.select_related("same_as"):
            twin = one.same_as or one
            twin.require_not_erased()
            if twin.status in ("ready", "checking"):
                present: Self = twin
                return present
        return None

    @classmethod
    def of_file(cls, *, project: Project, file_digest: str, filename: str) -> Self | None:
        """Return the dataset made from the file with this sha256 and name, read by default choices; None without one.

        Raises Invalid for a name of unknown format, and if the content was erased.
        """
        sent: Any = cast(Any, cls)(project=project, file_digest=file_digest, format=known_format("", filename))
        dataset: Self | None = sent.sent_before()
        return dataset
