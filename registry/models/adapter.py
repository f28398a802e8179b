"""Adapters and their immutable versions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from django.conf import settings
from django.contrib.postgres.fields import ArrayField
from django.db import IntegrityError, models, transaction
from django.db.models import Max
from django.utils.timezone import now

from adapterhub.accounts.models import Project, User
from adapterhub.api.etags import require_tag, tag_of
from adapterhub.audit.installation_key import signing_key, trusted_keys
from adapterhub.audit.models import AuditEvent
from adapterhub.audit.tags import Tag
from adapterhub.core.actor import Actor
from adapterhub.core.domain_signals import send_on_commit
from adapterhub.core.errors import Conflict, Invalid, InvalidTransition
from adapterhub.workspace import store
from registry.adapter_files.base_copies import copy_faults
from registry.adapter_files.engine_compatibility import Traits, Verdict, verdicts
from registry.adapter_files.findings import refusal
from registry.adapter_files.finite_check import fault_in
from registry.adapter_files.inspection import Inspection
from registry.adapter_files.manifest import Manifest, config_of, inspect_files, inspect_folder, parsed, refused
from registry.adapter_files.safetensors_header import tensors_of
from registry.adapter_files.tensor_names import WEIGHTS
from registry.domain_signals import version_uploaded
from registry.models.base_model import BaseModel
from registry.version_signature import require_signed, sign


class AdapterQuerySet(models.QuerySet["Adapter"]):
    """Adapters, including archived ones unless `live` is called."""

    def live(self) -> AdapterQuerySet:
        """Return the adapters that are not archived."""
        return self.filter(archived_at=None)


class Adapter(models.Model):
    """A named series of versions on one base model; each change is recorded in the audit trail."""

    project = models.ForeignKey(Project, models.PROTECT, related_name="adapters")
    slug = models.SlugField()
    base_model = models.ForeignKey(BaseModel, models.PROTECT, related_name="adapters")
    description = models.TextField(blank=True)
    tags = ArrayField(models.CharField(max_length=50), default=list, blank=True)
    archived_at = models.DateTimeField(null=True, blank=True)
    created_at = models.DateTimeField(default=now, editable=False)

    objects = AdapterQuerySet.as_manager()

    class Meta:
        ordering = ["slug"]
        constraints = [models.UniqueConstraint(fields=["project", "slug"], name="one_adapter_per_slug")]

    def __str__(self) -> str:
        return self.slug

    @property
    def ref(self) -> str:
        """The adapter's name among all projects: `project.adapter`."""
        return f"{self.project.slug}.{self.slug}"

    @classmethod
    def create(cls, *, project: Project, slug: str, base_model: BaseModel, by: Actor, **fields: Any) -> Adapter:
        """Create an adapter, record that, and return it; `fields` are its description and tags.

        Raises Conflict if another adapter of the project has the slug, archived ones included.
        """
        try:
            with transaction.atomic():
                adapter = cls.objects.create(project=project, slug=slug, base_model=base_model, **fields)
                AuditEvent.record(Tag.ADAPTER_CREATED, adapter, by=by, project=project)
        except IntegrityError:
            raise Conflict(f"The slug {slug!r} is taken: choose another.", field="slug", code="slug_taken") from None
        return adapter

    def read(self, folder: Path, *, foreign: bool, any_scale: bool = False, confirmation: str = "") -> Manifest:
        """Check the folder against the base model and replace its files by those to serve; return the manifest.

        `foreign` is True for files from outside, which are also checked for contradictions and for the base model that
        they name. With `any_scale` the modules may have different effective scales. `confirmation` is a person's reason
        why the adapter fits although it names another base model. Raises Invalid with every fault.
        """
        facts = self.base_model.facts(self.project, named=foreign)
        inspection = inspect_folder(folder, facts, is_foreign=foreign, any_scale=any_scale, confirmation=confirmation)
        manifest = Manifest.of(folder, inspection, facts.layers)
        if changed := copy_faults(folder, inspection.copies, self.base_model.folder):
            raise refusal(changed)
        manifest.config["base_model_name_or_path"] = self.base_model.source
        manifest.write(folder)
        return manifest

    def inspect(self, config: bytes, heads: Sequence[tuple[bytes, int]], **options: Any) -> Inspection:
        """Return all findings on a configuration and the headers of its weights; nothing is stored or raised.

        `heads` holds the first bytes and the whole size of each file: one file, or the shards. `options` are those of
        `inspection.inspect`.
        """
        read = (parsed(lambda: config_of(config)), parsed(lambda: tensors_of(heads)))
        return inspect_files(*read, self.base_model.facts(self.project, named=True), **options)

    def inspect_folder(self, folder: Path, **options: Any) -> Inspection:
        """Return all findings on a folder that somebody sent; nothing is changed.

        `options` are those of `inspection.inspect`. Raises Invalid if the folder does not hold exactly an adapter's two
        files.
        """
        return inspect_folder(folder, self.base_model.facts(self.project, named=True), **options)

    @property
    def etag(self) -> str:
        """The ETag of the fields that can change: description, tags and archiving."""
        return tag_of([self.description, self.tags, str(self.archived_at)])

    def describe(self, *, by: Actor, expected: str = "", **changes: Any) -> None:
        """Replace the description, the tags or both, as `changes` names them, and record that.

        Raises PreconditionFailed if `expected` is given and is not the ETag.
        """
        with transaction.atomic():
            adapter = Adapter.objects.select_for_update().get(pk=self.pk)
            require_tag(adapter, expected)
            before = {name: getattr(adapter, name) for name in changes}
            Adapter.objects.filter(pk=self.pk).update(**changes)
            AuditEvent.record(Tag.ADAPTER_CHANGED, self, by=by, project=self.project, before=before, after=changes)
        self.refresh_from_db()


class VersionStatus(models.TextChoices):
    """The states of a version. An unservable one can be downloaded and reduced to a plain LoRA, but is never loaded."""

    CHECKING = "checking"
    READY = "ready"
    REJECTED = "rejected"
    UNSERVABLE = "unservable"
    ARCHIVED = "archived"


class AdapterVersionQuerySet(models.QuerySet["AdapterVersion"]):
    """Versions, selected by their status or by what can serve them."""

    def ready(self) -> AdapterVersionQuerySet:
        """Return the versions that may be served."""
        return self.filter(status=VersionStatus.READY)

    def waiting_long(self) -> AdapterVersionQuerySet:
        """Return the versions that are still `checking` a minute after they were published."""
        return self.filter(status=VersionStatus.CHECKING, created_at__lt=now() - timedelta(minutes=1))

    def trained_on(self, base_model: BaseModel) -> AdapterVersionQuerySet:
        """Return the versions of adapters of this base model."""
        return self.filter(adapter__base_model=base_model)

    def fitting(self, base_model: BaseModel) -> AdapterVersionQuerySet:
        """Return the versions of this base model and of the one whose declared variant it is."""
        return self.filter(adapter__base_model__in={base_model.pk, base_model.variant_of_id} - {None})

    def servable_on(self, cluster: Any) -> AdapterVersionQuerySet:
        """Return the versions of the cluster's base model and projects whose rank it serves, whatever their status."""
        versions = self.fitting(cluster.base_model).filter(adapter__project__in=cluster.projects())
        return versions.filter(max_rank__lte=cluster.max_lora_rank)


# The large fields of a version, which no list shows.
BODY = ("config", "ranks", "lineage", "report")


Rows = TypeVar("Rows", bound=models.QuerySet[Any])


def without_bodies(rows: Rows, *paths: str) -> Rows:
    """Defer the large JSON fields of the versions at these paths; "" means that the rows themselves are versions.

    A deferred field is read from the database when it is accessed.
    """
    return rows.defer(*(f"{path}__{name}".removeprefix("__") for path in paths for name in BODY))


class AdapterVersion(models.Model):
    """Immutable weights of an adapter. A database trigger refuses DELETE, and UPDATE of anything but the status.

    The signature is written once, when the version becomes ready, and the report until its check ends. `config` is the
    configuration that replicas read.
    """

    adapter = models.ForeignKey(Adapter, models.PROTECT, related_name="versions")
    number = models.PositiveIntegerField()
    digest = models.CharField(max_length=64)
    served_name = models.CharField(max_length=160, unique=True)
    status = models.CharField(max_length=20, choices=VersionStatus.choices, default=VersionStatus.READY)
    message = models.TextField(blank=True, default="")
    signature = models.TextField(blank=True, default="")
    config = models.JSONField(default=dict)
    base_digest = models.CharField(max_length=64)
    tokenizer_digest = models.CharField(max_length=64, blank=True, default="")
    template_digest = models.CharField(max_length=64, blank=True, default="")
    method = models.CharField(max_length=20)
    max_rank = models.PositiveIntegerField()
    ranks = models.JSONField(help_text="module name -> rank")
    parameters = models.PositiveBigIntegerField()
    size_bytes = models.PositiveBigIntegerField()
    metrics = models.JSONField(default=dict)
    lineage = models.JSONField(default=dict)
    report = models.JSONField(
        default=dict, db_default={}, help_text="what was sent, and what its check found and changed"
    )
    created_by = models.ForeignKey(User, models.PROTECT, null=True, related_name="+")
    created_at = models.DateTimeField(default=now, editable=False)

    objects = AdapterVersionQuerySet.as_manager()

    class Meta:
        ordering = ["-id"]
        constraints = [
            models.UniqueConstraint(fields=["adapter", "number"], name="one_version_per_number"),
            models.UniqueConstraint(fields=["adapter", "digest"], name="one_version_per_content"),
            models.CheckConstraint(condition=models.Q(digest__regex="^[0-9a-f]{64}$"), name="digest_is_sha256"),
        ]
        indexes = [models.Index(fields=["adapter", "-id"], name="versions_newest_first")]

    def __str__(self) -> str:
        return f"{self.adapter.slug} v{self.number}"

    @property
    def project(self) -> Project:
        """Return the adapter's project."""
        return self.adapter.project

    @classmethod
    def publish(
        cls,
        adapter: Adapter,
        folder: Path,
        *,
        method: str,
        by: Actor,
        metrics: dict[str, Any] | None = None,
        lineage: dict[str, Any] | None = None,
        foreign: bool = False,
        may_move: bool = False,
        sent: Manifest | None = None,
        confirmation: str = "",
    ) -> AdapterVersion:
        """Store the folder's weights and record them as the adapter's next version, which is returned.

        The folder's configuration is rewritten from its checked fields. Files are stored before the row is written: a
        crash leaves an unreferenced artifact, never a version without weights. A `foreign` version, uploaded from
        outside, stays `checking` until a child process has scanned its weights; any other is scanned and signed here.
        With `may_move` the folder may be moved into the store. `sent` is the manifest of what was uploaded, if its
        scales were folded since. `confirmation` is a person's reason why it fits although it names another base model.
        Raises Invalid if the files are not an adapter of the base model, and Conflict if a version of the adapter has
        these weights.
        """
        manifest = adapter.read(folder, foreign=foreign, confirmation=confirmation)
        if not foreign and (fault := fault_in(folder / WEIGHTS)):
            raise refused(fault, WEIGHTS)
        digest = store().give_dir(folder) if may_move else store().put_dir(folder)
        with transaction.atomic():
            number = cls.next_number(adapter, digest)
            version = cls(
                adapter=adapter,
                number=number,
                digest=digest,
                served_name=f"{adapter.project.slug}.{adapter.slug}.v{number}-{digest[:12]}",
                status=VersionStatus.CHECKING if foreign else VersionStatus.READY,
                config=manifest.config,
                base_digest=adapter.base_model.digest,
                tokenizer_digest=adapter.base_model.tokenizer_digest,
                template_digest=adapter.base_model.template_digest,
                method=method,
                max_rank=manifest.max_rank,
                ranks=manifest.ranks,
                parameters=manifest.parameters,
                size_bytes=manifest.size_bytes,
                metrics=metrics or {},
                lineage=lineage or {},
                report=(sent or manifest).report(folded=bool(sent)) if foreign else {},
                created_by=by.user,
            )
            version.signature = "" if foreign else sign(version.identity(), signing_key())
            version.save(force_insert=True)
            AuditEvent.record(
                Tag.VERSION_PUBLISHED,
                version,
                by=by,
                project=adapter.project,
                after={"digest": digest, "served_name": version.served_name},
                evidence=metrics,
                reason=confirmation,
            )
            transaction.on_commit(lambda: store().hold(digest))
            if foreign:
                send_on_commit(version_uploaded, version=version.pk)
        return version

    @classmethod
    def next_number(cls, adapter: Adapter, digest: str) -> int:
        """Lock the adapter and return the number of its next version.

        Raises Conflict if one of its versions has these weights.
        """
        Adapter.objects.select_for_update().get(pk=adapter.pk)
        if twin := cls.objects.filter(adapter=adapter, digest=digest).first():
            raise Conflict(f"These weights have already been published as {twin}.", code="version_exists")
        return (cls.objects.filter(adapter=adapter).aggregate(Max("number"))["number__max"] or 0) + 1

    def identity(self) -> dict[str, Any]:
        """Return the content to sign: adapter, number, served name, and the digests of weights and base model."""
        return {
            "adapter": self.adapter.slug,
            "number": self.number,
            "served_name": self.served_name,
            "digest": self.digest,
            "base_digest": self.base_digest,
        }

    def passed(self, *, by: Actor, scan: dict[str, Any] | None = None) -> None:
        """Mark the version ready, sign it and record that, unless its check has ended already.

        `scan`, the scan's measurements, is added to the report.
        """
        signature = sign(self.identity(), signing_key())
        report = {**self.report, **(scan or {})}
        self.end_check(Tag.VERSION_CHECKED, by, status=VersionStatus.READY, signature=signature, report=report)

    def reject(self, message: str, *, by: Actor, scan: dict[str, Any] | None = None) -> None:
        """Mark the version rejected with the message and record that, unless its check has ended already.

        `scan`, the scan's measurements, is added to the report.
        """
        report = {**self.report, **(scan or {})}
        self.end_check(Tag.VERSION_REJECTED, by, status=VersionStatus.REJECTED, message=message, report=report)

    def sign_late(self, *, by: Actor) -> None:
        """Sign a ready version that was published before versions were signed, and record that.

        Nothing happens to a version that is signed or not ready.
        """
        with transaction.atomic():
            signature = sign(self.identity(), signing_key())
            if AdapterVersion.objects.ready().filter(pk=self.pk, signature="").update(signature=signature):
                AuditEvent.record(Tag.VERSION_CHECKED, self, by=by, project=self.project, after={"digest": self.digest})
        self.refresh_from_db()

    def end_check(self, tag: Tag, by: Actor, **fields: Any) -> None:
        """Set the fields and record the event `tag`, unless the check of this version has ended already."""
        with transaction.atomic():
            checking = AdapterVersion.objects.filter(pk=self.pk, status=VersionStatus.CHECKING)
            if checking.update(**fields):
                reason = fields.get("message", "")
                AuditEvent.record(tag, self, by=by, project=self.project, after={"digest": self.digest}, reason=reason)
        self.refresh_from_db()

    def archive(self, *, reason: str, by: Actor) -> None:
        """Mark the version archived, so that it can no longer be served, and record that.

        An unservable version without a signature is signed. Raises InvalidTransition if the version is archived
        already, or an alias or an active rollout serves it.
        """
        with transaction.atomic():
            version = AdapterVersion.objects.select_for_update().get(pk=self.pk)
            if version.status == VersionStatus.ARCHIVED:
                raise InvalidTransition(f"{version} is archived already.")
            if version.aliases.exists() or version.candidate_of.active().exists():
                raise InvalidTransition(
                    f"{version} is served by an alias or a rollout: move that to another version first."
                )
            # What was kept without one is told from what was rejected by its signature, and stays downloadable.
            kept_unsigned = version.status == VersionStatus.UNSERVABLE and not version.signature
            late = {"signature": sign(version.kept_identity(), signing_key())} if kept_unsigned else {}
            AdapterVersion.objects.filter(pk=self.pk).update(status=VersionStatus.ARCHIVED, **late)
            AuditEvent.record(Tag.VERSION_ARCHIVED, version, by=by, project=version.project, reason=reason)
        self.refresh_from_db()

    def require_servable_on(self, cluster: Any) -> None:
        """Check that the cluster may serve this project and can serve this version.

        Raises Invalid with the reason if not.
        """
        cluster.require_serves(self.project)
        self.require_fits(cluster)

    def require_fits(self, cluster: Any) -> None:
        """Check that the version is ready, and that the cluster serves its base model and rank.

        Raises Invalid if not.
        """
        if self.status != VersionStatus.READY:
            raise Invalid(f"{self} is {self.status}, not ready.", field="version", code="version_not_ready")
        if not cluster.base_model.serves_adapters_of(self.base_digest):
            other = self.other_than(cluster.base_model)
            message = f"{self} was trained on another {other} than {cluster} serves.{self.variant_advice(cluster)}"
            raise Invalid(message, field="version", code="wrong_base")
        if self.max_rank > cluster.max_lora_rank:
            raise Invalid(
                f"{self} has rank {self.max_rank}; {cluster} serves at most {cluster.max_lora_rank}.",
                field="version",
                code="rank_too_high",
            )

    def variant_advice(self, cluster: Any) -> str:
        """Return advice on variants, to be added when the cluster's base model does not fit; "" if there is none."""
        own, served = self.adapter.base_model, cluster.base_model
        if own.variant_of_id == served.pk:
            return f" {own} is a variant of {served}: it serves the adapters of {served}, and not the other way round."
        if own.tokenizer_digest == served.tokenizer_digest and own.has_shapes_of(served):
            return f" If {served} is a copy of {own} with fewer bits, have an admin declare it a variant of {own}."
        return ""

    def other_than(self, base: BaseModel) -> str:
        """Name in words what differs between this version's base model and `base`: "base model and another tokenizer".

        Call it only if their digests differ: the base model is always named. The tokenizer and the chat template are
        compared unless the digests are missing, as in older rows.
        """
        names = ["base model"]
        if self.tokenizer_digest and base.tokenizer_digest:
            names += ["tokenizer"] if self.tokenizer_digest != base.tokenizer_digest else []
            names += ["chat template"] if self.template_digest != base.template_digest else []
        return " and another ".join(names)

    def verdicts(self) -> list[Verdict]:
        """Return a verdict for each known engine: if it can serve this version, and the reason.

        Empty for an older version without a stored configuration.
        """
        return verdicts(Traits.of(self.config, self.ranks, self.base_digest)) if self.config else []

    def require_signature(self) -> None:
        """Check the stored signature of the version's identity. Raises ArtifactError unless a trusted key made it."""
        require_signed(self.signature, self.identity(), trusted_keys())

    @property
    def is_kept(self) -> bool:
        """True for a version that is kept though engines cannot serve it, archived or not; its message says why."""
        was_kept = self.status == VersionStatus.ARCHIVED and bool(self.message and self.signature)
        return self.status == VersionStatus.UNSERVABLE or was_kept

    def kept_identity(self) -> dict[str, Any]:
        """Return the content to sign of a version that engines cannot serve: no replica loads by such a signature."""
        return {**self.identity(), "unservable": True}

    def require_downloadable(self) -> None:
        """Check the signature before a download. Raises ArtifactError if it is not valid.

        An unservable version from before such versions were signed passes without one: the caller has to compare its
        files with its digest.
        """
        if not self.is_kept:
            self.require_signature()
        elif self.signature:
            require_signed(self.signature, self.kept_identity(), trusted_keys())

    def served_folder(self) -> Path:
        """Return the folder below SERVED_DIR from which replicas load the version, with a verified copy of its files.

        Raises ArtifactError if the signature is not valid, or files are missing or changed.
        """
        return self.fetch(settings.SERVED_DIR / self.digest)

    def fetch(self, target: Path) -> Path:
        """Copy the stored files to the folder `target`, after a check of the signature, and return `target`.

        Raises ArtifactError if the signature is not valid, or files are missing or do not match the version's digest.
        """
        self.require_signature()
        return self.stored(target)

    @contextmanager
    def opened(self) -> Iterator[Path]:
        """Provide the folder of stored files, unverified: the caller must verify the files that it reads, see `File`.

        Raises ArtifactError as `require_downloadable` does.
        """
        self.require_downloadable()
        with store().opened(self.digest) as folder:
            yield folder

    def stored(self, target: Path) -> Path:
        """Copy the stored files to the folder `target`, compare them with the version's digest, and return the folder.

        No signature is checked. Raises ArtifactError for missing or changed files.
        """
        return store().fetch_dir(self.digest, target)
