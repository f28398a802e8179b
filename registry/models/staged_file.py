"""Files that somebody sent and of which no version has been made yet."""

from __future__ import annotations

import uuid
from datetime import timedelta

from django.db import models
from django.utils.timezone import now

from adapterhub.accounts.models import Project, User

KEPT_FOR = timedelta(days=1)
# The folder of files that browsers send in parts; no program's path begins so.
OF_BROWSERS = ".browser"


class StagedFileQuerySet(models.QuerySet["StagedFile"]):
    """Staged files by their place and their age."""

    def below(self, folder: str) -> StagedFileQuerySet:
        """Return the files whose path begins with the folder."""
        return self.filter(path__startswith=f"{folder.rstrip('/')}/")

    def expired(self) -> StagedFileQuerySet:
        """Return the files of which nothing has arrived for KEPT_FOR."""
        return self.filter(received_at__lt=now() - KEPT_FOR)


class StagedFile(models.Model):
    """A file on its way to a version, whole or as far as it has arrived.

    The sender's path never becomes a key of the store: bytes lie under the row's id, in the order of `parts`, a list of
    [name, bytes].
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    project = models.ForeignKey(Project, models.PROTECT, related_name="staged_files")
    path = models.CharField(max_length=1000)
    parts = models.JSONField(default=list)
    size_bytes = models.PositiveBigIntegerField(default=0)
    created_by = models.ForeignKey(User, models.PROTECT, null=True, related_name="+")
    received_at = models.DateTimeField(default=now)

    objects = StagedFileQuerySet.as_manager()

    class Meta:
        ordering = ["path"]
        constraints = [models.UniqueConstraint(fields=["project", "path"], name="one_staged_file_per_path")]

    def __str__(self) -> str:
        return self.path
