"""Datasets: checked, split and stored under their digest."""

from __future__ import annotations

import shutil
import tempfile
from itertools import islice
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import models, transaction
from django.utils.timezone import now

from adapterhub.accounts.actor import Actor
from adapterhub.accounts.models import Project, User
from adapterhub.api.errors import Invalid
from adapterhub.artifacts import open_store
from adapterhub.audit.models import AuditEvent
from adapterhub.audit.tags import Tag
from training import rows

MIN_ROWS = 2


class BrokenLines(Invalid):
    """The file has lines that are no rows; nothing was stored."""

    code = "broken_lines"

    def __init__(self, errors: list[rows.LineError]) -> None:
        first = errors[0]
        more = f" ({len(errors)} such lines)" if len(errors) > 1 else ""
        super().__init__(f"Line {first.line}: {first.message}{more} Mend the file and send it again.", field="file")
        self.errors = errors


class Dataset(models.Model):
    """Rows in one normal form, split by a hash of the prompt into train and eval."""

    project = models.ForeignKey(Project, models.PROTECT, related_name="datasets")
    name = models.CharField(max_length=200)
    digest = models.CharField(max_length=64)
    rows = models.PositiveIntegerField()
    splits = models.JSONField(help_text="split -> rows")
    columns = models.JSONField()
    size_bytes = models.PositiveBigIntegerField()
    warnings = models.JSONField(default=list)
    created_by = models.ForeignKey(User, models.PROTECT, null=True, related_name="+")
    created_at = models.DateTimeField(default=now, editable=False)

    class Meta:
        ordering = ["-id"]
        constraints = [models.UniqueConstraint(fields=["project", "digest"], name="one_dataset_per_content")]

    def __str__(self) -> str:
        return self.name

    @classmethod
    def create(cls, *, project: Project, name: str, file: Path, filename: str, by: Actor) -> Dataset:
        """Check and store a file. Raises BrokenLines with every bad line, or Invalid when too little is left.

        The same content again is the same dataset.
        """
        checked = rows.check_file(file, filename)
        if checked.errors:
            raise BrokenLines(checked.errors)
        train, held_out = rows.split(checked.rows)
        if len(checked.rows) < MIN_ROWS or not train or not held_out:
            raise Invalid(
                f"{len(checked.rows)} rows are too few to train and to evaluate: add more.",
                field="file",
                code="too_short",
            )
        digest = store_rows(train, held_out)
        with transaction.atomic():
            if twin := cls.objects.filter(project=project, digest=digest).first():
                return twin
            dataset = cls.objects.create(
                project=project,
                name=name,
                digest=digest,
                rows=len(checked.rows),
                splits={"train": len(train), "eval": len(held_out)},
                columns=sorted(checked.columns),
                size_bytes=file.stat().st_size,
                warnings=warnings_about(checked.rows),
                created_by=by.user,
            )
            AuditEvent.record(
                Tag.DATASET_CREATED, dataset, by=by, project=project, after={"digest": digest, "rows": dataset.rows}
            )
        return dataset

    def folder(self) -> Path:
        """A verified local copy: train.jsonl and eval.jsonl."""
        store = open_store(settings.ARTIFACT_STORE, endpoint_url=settings.S3_ENDPOINT_URL)
        return store.fetch_dir(self.digest, settings.WORK_DIR / "datasets" / self.digest)

    def preview(self, count: int = 10) -> list[dict[str, Any]]:
        """The first rows of the training split."""
        with (self.folder() / "train.jsonl").open("rb") as stream:
            return [rows.parse_row(line) for line in islice(stream, count)]


def store_rows(train: list[rows.Row], held_out: list[rows.Row]) -> str:
    folder = Path(tempfile.mkdtemp(prefix="dataset-", dir=scratch()))
    try:
        rows.write_rows(folder / "train.jsonl", train)
        rows.write_rows(folder / "eval.jsonl", held_out)
        return open_store(settings.ARTIFACT_STORE, endpoint_url=settings.S3_ENDPOINT_URL).put_dir(folder)
    finally:
        shutil.rmtree(folder)


def scratch() -> Path:
    settings.WORK_DIR.mkdir(parents=True, exist_ok=True, mode=0o700)
    return settings.WORK_DIR


def warnings_about(all_rows: list[rows.Row]) -> list[str]:
    found = []
    distinct = {str(sorted(row.items())) for row in all_rows}
    if duplicates := len(all_rows) - len(distinct):
        found.append(f"{duplicates} rows are exact copies of others.")
    if len(all_rows) < 100:
        found.append("Fewer than 100 rows: expect a weak adapter and a noisy evaluation.")
    return found
