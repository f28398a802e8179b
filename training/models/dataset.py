"""Datasets: training data that is checked, split, and stored under its digest."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import models, transaction
from django.db.models import Q
from django.utils.timezone import now

from adapterhub.accounts.models import Project, User
from adapterhub.artifacts import digest_of, manifest_of
from adapterhub.audit.models import AuditEvent
from adapterhub.audit.tags import Tag
from adapterhub.core.actor import Actor, system
from adapterhub.core.counts import counted
from adapterhub.core.domain_signals import send_on_commit
from adapterhub.core.errors import Invalid
from adapterhub.workspace import place_for_child, scratch, store
from registry.models import BaseModel
from training.datasets import row_preview, text_streams
from training.datasets.bounded_scan import checked, needs_child
from training.datasets.reading_options import Choices
from training.datasets.remote import Source
from training.datasets.scan import Report
from training.datasets.uploads import known_format, known_mapping, sha256_of, stored_alone
from training.domain_signals import dataset_uploaded
from training.models.dataset_kind import KindMixin
from training.models.dataset_source import SourceMixin
from training.models.repeated_upload import RepeatedUploadMixin
from training.models.retention import RetentionMixin

MIN_ROWS = 2
# A larger file is checked by a worker, and the upload is answered at once.
AT_ONCE_BYTES = 32 * 2**20
# Text packs to about an eighth.
PACKED_RATIO = 8
# A check that has not ended by then was lost with its worker.
CHECK_LOST = timedelta(minutes=30)
CHECKER = system("checker")


class BrokenLines(Invalid):
    """Raised for a file with lines that are not valid rows; none of its rows were stored.

    `lines` are the first of their errors.
    """

    code = "broken_lines"

    def __init__(self, report: Report) -> None:
        first = report.errors[0]
        more = f" ({counted(report.broken, 'line has', 'lines have')} faults.)" if report.broken > 1 else ""
        super().__init__(f"Line {first.line}: {first.message}{more} Fix the file and send it again.", field="file")
        self.lines = report.errors


class DatasetStatus(models.TextChoices):
    """The states of a dataset: being checked, ready to train on, rejected by its check, or with its content erased."""

    CHECKING = "checking"
    READY = "ready"
    REJECTED = "rejected"
    ERASED = "erased"


class DatasetQuerySet(models.QuerySet["Dataset"]):
    """Datasets, selected by their status."""

    def ready(self) -> DatasetQuerySet:
        """Return the datasets that can be trained on."""
        return self.filter(status=DatasetStatus.READY)

    def waiting(self) -> DatasetQuerySet:
        """Return the datasets that are `checking` though nobody checks them: the message or the worker was lost."""
        lost = Q(check_began_at=None, created_at__lt=now() - timedelta(minutes=1))
        return self.filter(lost | Q(check_began_at__lt=now() - CHECK_LOST), status=DatasetStatus.CHECKING)


class Dataset(KindMixin, RepeatedUploadMixin, SourceMixin, RetentionMixin):
    """A dataset: rows in one normal form, split into train and eval by groups of the same document or prompt."""

    subject = "dataset"

    project = models.ForeignKey(Project, models.PROTECT, related_name="datasets")
    name = models.CharField(max_length=200)
    status = models.CharField(max_length=20, choices=DatasetStatus.choices, default=DatasetStatus.READY)
    message = models.TextField(blank=True, default="")
    format = models.CharField(max_length=20, blank=True, default="")
    encoding = models.CharField(
        max_length=20, blank=True, default="", db_default="", help_text="Empty: UTF-8, or the file's mark."
    )
    mapping = models.JSONField(default=dict, help_text="our column -> the file's")
    escape = models.BooleanField(default=False, db_default=False, help_text="Control tokens in prompts get a space.")
    read_as = models.TextField(blank=True, default="", db_default="", help_text="The recognised form of the rows.")
    upload = models.CharField(max_length=64, blank=True, default="", help_text="digest of a file still to be checked")
    check_began_at = models.DateTimeField(null=True, editable=False)
    digest = models.CharField(max_length=64, blank=True)
    rows = models.PositiveIntegerField(default=0)
    splits = models.JSONField(default=dict, help_text="split -> rows")
    columns = models.JSONField(default=list)
    size_bytes = models.PositiveBigIntegerField()
    errors = models.JSONField(default=list, help_text="the first bad lines: line, column, code, message")
    warnings = models.JSONField(default=list)
    created_by = models.ForeignKey(User, models.PROTECT, null=True, related_name="+")
    created_at = models.DateTimeField(default=now, editable=False)

    objects = DatasetQuerySet.as_manager()

    class Meta:
        ordering = ["-id"]
        constraints = [
            models.UniqueConstraint(
                fields=["project", "digest"], condition=~Q(digest=""), name="one_dataset_per_content"
            ),
            models.CheckConstraint(
                condition=~Q(status="ready") | Q(digest__regex="^[0-9a-f]{64}$"), name="a_ready_dataset_has_a_digest"
            ),
        ]

    def __str__(self) -> str:
        return self.name

    @classmethod
    def create(
        cls,
        *,
        project: Project,
        name: str,
        file: Path,
        filename: str,
        by: Actor,
        format: str = "",
        mapping: dict[str, str] | None = None,
        encoding: str = "",
        escape: bool = False,
    ) -> Dataset:
        """Check and store a file, record that, and return its dataset.

        `format` "" is that of the file name's ending; `mapping` maps our columns to the file's; `encoding` "" is UTF-8,
        or that of the file's mark; with `escape` control tokens in prompts get a space. A file over AT_ONCE_BYTES, for
        a compressed one by estimate, is stored and checked later by a worker. The same content again gives the same
        dataset. Raises BrokenLines, Invalid for an unknown format or mapping, too few rows or erased content, TooMany
        if the project has too many checks in child processes, Unavailable if too many files are being checked at once,
        and OutOfSpace if the disk is full.
        """
        dataset = cls(
            project=project,
            name=name,
            format=known_format(format, filename),
            mapping=known_mapping(mapping or {}),
            encoding=encoding,
            escape=escape,
            size_bytes=file.stat().st_size,
            file_digest=sha256_of(file),
            created_by=by.user,
        )
        if weight_of(file) > AT_ONCE_BYTES:
            if (twin := dataset.sent_before()) and twin.status == DatasetStatus.READY:
                return twin
            dataset.upload = stored_alone(file)
            return dataset.check_later(by=by, what={"upload": dataset.upload})
        with dataset.place_for(file), dataset.stored(file) as (report, digest):
            if twin := cls.objects.filter(project=project, digest=digest).first():
                twin.require_not_erased()
                return twin
            dataset.accept(report, digest, by=by)
        return dataset

    @classmethod
    def examined(
        cls,
        *,
        project: Project,
        file: Path,
        filename: str,
        format: str = "",
        mapping: dict[str, str] | None = None,
        encoding: str = "",
        escape: bool = False,
    ) -> Dataset:
        """Check a file without storing anything; the arguments are those of `create`.

        Return the project's dataset of the same content, or else an unsaved one. Raises what `create` does, and Invalid
        for a file over AT_ONCE_BYTES.
        """
        dataset = cls(
            project=project,
            name=Path(filename).stem,
            size_bytes=file.stat().st_size,
            format=known_format(format, filename),
            mapping=known_mapping(mapping or {}),
            encoding=encoding,
            escape=escape,
        )
        if weight_of(file) > AT_ONCE_BYTES:
            message = f"Over {AT_ONCE_BYTES >> 20} MB a file can only be checked by a worker: upload it."
            raise Invalid(message, field="file", code="too_large_to_look_at")
        with dataset.place_for(file), dataset.scanned(file) as (report, folder):
            dataset.digest = digest_of(manifest_of(folder))
            dataset.describe(report)
        return cls.objects.filter(project=project, digest=dataset.digest).first() or dataset

    @classmethod
    def bring(
        cls, *, project: Project, source: Source, by: Actor, name: str = "", format: str = "", **choices: Any
    ) -> Dataset:
        """Create, record and return a dataset whose source a worker will read and check.

        `name` "" is that of the source's file. `format` "" is that of the file's ending; it is ignored for a hub.
        `choices` are `mapping`, `encoding` and `escape` of `create`. Raises Invalid if the source is not allowed, or
        for an unknown format or mapping.
        """
        source.require_allowed(project.slug)
        dataset = cls(
            project=project,
            name=name or Path(source.filename).stem,
            format=known_format("" if source.is_hub else format, source.filename),
            mapping=known_mapping(choices.pop("mapping", None) or {}),
            source=asdict(source),
            size_bytes=0,
            created_by=by.user,
            **choices,
        )
        return dataset.check_later(by=by, what={"source": dataset.source})

    def check_later(self, *, by: Actor, what: dict[str, Any]) -> Dataset:
        """Save and record the new dataset as `checking`, and send the signal of its upload on commit; return it.

        `what` is the detail of the audit event: the digest of the upload, or the source.
        """
        self.status = DatasetStatus.CHECKING
        with transaction.atomic():
            self.save(force_insert=True)
            AuditEvent.record(Tag.DATASET_UPLOADED, self, by=by, project=self.project, after=what)
            send_on_commit(dataset_uploaded, dataset=self.pk)
        return self

    @classmethod
    def begin_check(cls, pk: int) -> Dataset | None:
        """Claim the check of a dataset and return the dataset.

        None if it has ended or another worker claimed it less than CHECK_LOST ago.
        """
        free = Q(check_began_at=None) | Q(check_began_at__lt=now() - CHECK_LOST)
        waiting = cls.objects.filter(free, pk=pk, status=DatasetStatus.CHECKING)
        return cls.objects.get(pk=pk) if waiting.update(check_began_at=now()) else None

    def judge(self) -> None:
        """Check the stored upload, or the content of the source, and mark the dataset ready or rejected.

        It is safe to call twice. After an error that is not the file's, such as OutOfSpace, which is raised, the
        dataset stays `checking`, and the check is repeated once CHECK_LOST has passed.
        """
        with scratch() as folder:
            try:
                file = self.fetched(folder) if self.source else self.stored_upload(folder)
                with self.stored(file) as (report, digest):
                    self.end_check(report, digest)
            except Invalid as error:
                self.reject(error)

    def stored_upload(self, folder: Path) -> Path:
        """Copy the stored upload into the folder `upload` below `folder`, and return the path of the copied file."""
        (file,) = store().fetch_dir(self.upload, folder / "upload").iterdir()
        return file

    def end_check(self, report: Report, digest: str) -> None:
        """Accept the dataset, or reject it as a copy of another; nothing happens if its check has ended already.

        Raises Invalid if this content was erased.
        """
        with transaction.atomic():
            if self.lock().status != DatasetStatus.CHECKING:
                return
            if twin := Dataset.objects.filter(project=self.project, digest=digest).first():
                twin.require_not_erased()
                message = f"This content is already the dataset {twin} (number {twin.pk})."
                self.reject(Invalid(message, field="file"), same_as=twin)
                return
            self.accept(report, digest, by=CHECKER)

    def accept(self, report: Report, digest: str, *, by: Actor) -> None:
        """Mark the dataset as ready with the results of its scan, and record that."""
        self.status, self.digest = DatasetStatus.READY, digest
        self.describe(report)
        with transaction.atomic():
            self.save()
            after = {"digest": digest, "rows": self.rows, **({"source": self.source} if self.source else {})}
            AuditEvent.record(Tag.DATASET_CREATED, self, by=by, project=self.project, after=after)

    @property
    def choices(self) -> Choices:
        """Return the sender's choices for reading the file: mapping, encoding and escape."""
        return Choices(self.mapping, self.encoding, self.escape)

    def describe(self, report: Report) -> None:
        """Set the fields that describe the rows from the scan, without saving."""
        self.rows, self.splits, self.columns = report.rows, report.splits, report.columns
        self.read_as, self.warnings = report.read_as, report.warnings

    def reject(self, error: Invalid, *, same_as: Dataset | None = None) -> None:
        """Mark the upload as rejected, with its errors line by line, and record that.

        Nothing happens if its check has ended already. `same_as` is the dataset that has the same content.
        """
        with transaction.atomic():
            if self.lock().status != DatasetStatus.CHECKING:
                return
            self.status, self.message, self.same_as = DatasetStatus.REJECTED, error.detail, same_as
            self.errors = [asdict(line) for line in getattr(error, "lines", [])]
            self.save()
            AuditEvent.record(Tag.DATASET_REJECTED, self, by=CHECKER, project=self.project, reason=error.detail)

    def lock(self) -> Dataset:
        """Return the dataset's row, read again and locked."""
        return Dataset.objects.select_for_update().get(pk=self.pk)

    def place_for(self, file: Path) -> AbstractContextManager[None]:
        """Return a context that holds one of the project's places for child processes, if the check needs a child.

        Entering it raises TooMany if all are taken.
        """
        return place_for_child(self.project_id) if needs_child(file, self.format) else nullcontext()

    @contextmanager
    def stored(self, file: Path) -> Iterator[tuple[Report, str]]:
        """Scan the file, put its splits into the store, and yield the report and their digest.

        Raises BrokenLines for invalid rows, Invalid for a file that cannot be read or has too few rows, OutOfSpace if
        the disk is full, and Unavailable if too many files are being checked.
        """
        with self.scanned(file) as (report, folder):
            yield report, store().put_dir(folder)

    @contextmanager
    def scanned(self, file: Path) -> Iterator[tuple[Report, Path]]:
        """Scan the file, and yield the report and a folder with the splits, which is deleted at the end of the block.

        Raises BrokenLines for invalid rows, Invalid for a file that cannot be read or has too few rows, OutOfSpace if
        the disk is full, and Unavailable if too many files are being checked.
        """
        with scratch() as folder:
            report = checked(file, self.format, folder, self.choices)
            require_enough(report)
            yield report, folder

    def require_ready(self) -> None:
        """Check that the dataset is ready. Raises Invalid if it is being checked, was rejected, or was erased."""
        if self.status != DatasetStatus.READY:
            raise Invalid(f"{self} is {self.status}, not ready.", field="dataset", code="dataset_not_ready")

    def require_not_erased(self) -> None:
        """Raise Invalid if this content was erased; if its bytes were stored again, they are deleted first."""
        if self.status == DatasetStatus.ERASED:
            self.drop_content()
            raise Invalid(
                f"This content was erased as {self} and cannot be uploaded again.", field="file", code="erased"
            )

    def drop_content(self) -> None:
        """Delete the stored and local bytes of an erased dataset; it is safe to call twice.

        Stored bytes that another dataset needs stay.
        """
        for digest in filter(None, (self.digest, self.upload)):
            drop_bytes(digest)

    def folder(self) -> Path:
        """Return a verified local folder with train.jsonl and eval.jsonl, fetched if missing.

        Raises Invalid if the dataset is not ready, and ArtifactError if its content is missing or damaged in the store.
        """
        self.require_ready()
        return store().fetch_dir(self.digest, settings.WORK_DIR / "datasets" / self.digest)

    def preview(self, count: int = 10) -> list[dict[str, Any]]:
        """Return the first `count` rows of the training split; an empty list unless the dataset is ready."""
        if self.status != DatasetStatus.READY:
            return []
        with (self.folder() / "train.jsonl").open("rb") as stream:
            return [json.loads(line) for line in islice(stream, count)]

    def is_conversation(self) -> bool:
        """Return True if the rows are conversations, or have prompts in the form of turns."""
        return "messages" in self.columns or any(isinstance(row.get("prompt"), list) for row in self.preview(1))

    def rendered(
        self, model: BaseModel, max_length: int, reading: row_preview.ReadingOfRows = row_preview.PLAIN_READING
    ) -> dict[str, Any]:
        """Return the first rows as a training on the model reads them, with the lengths of rows in tokens.

        `max_length` is the training's, in tokens; `reading` says how it reads rows. Raises Invalid if the dataset is
        not ready, or the model's tokenizer cannot render the rows.
        """
        file = self.folder() / "train.jsonl"
        try:
            return row_preview.preview(file, row_preview.tokenizer_of(model.folder, model.digest), max_length, reading)
        except row_preview.NotReadable as error:
            raise Invalid(str(error), field="base_model", code="not_readable") from None


def require_enough(report: Report) -> None:
    """Check that the file has no broken line, enough rows, and rows in both splits. Raises BrokenLines or Invalid."""
    if report.errors:
        raise BrokenLines(report)
    if not report.rows:
        raise Invalid("The file has no rows.", field="file", code="too_short")
    if report.rows < MIN_ROWS:
        message = f"{counted(report.rows, 'row is', 'rows are')} too few to train and evaluate on: add more."
        raise Invalid(message, field="file", code="too_short")
    if all(report.splits.values()):
        return
    if not report.is_grouped:
        message = "The column split leaves no row to train on: mark some rows as train."
    else:
        message = (
            f"All {counted(report.rows, 'row')} are one group (one document, or one prompt), so none can be held out: "
            "add others, or give each row the document that it belongs to in a column document."
        )
    raise Invalid(message, field="file", code="too_few_groups")


def weight_of(file: Path) -> int:
    """Return the number of bytes that a check reads: the file's size, for a compressed file an estimate."""
    return file.stat().st_size * (PACKED_RATIO if text_streams.is_packed(file) else 1)


def drop_bytes(digest: str) -> None:
    """Delete the local copy of the content, and the stored one unless another dataset still needs it.

    Datasets of the same content that are not erased need it.
    """
    shutil.rmtree(settings.WORK_DIR / "datasets" / digest, ignore_errors=True)
    alive = Dataset.objects.filter(Q(digest=digest) | Q(upload=digest)).exclude(status=DatasetStatus.ERASED)
    if not alive.exists() and store().has(digest):
        store().drop(digest, now() + timedelta(minutes=1))
