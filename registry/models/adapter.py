"""Adapters and their immutable versions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from django.conf import settings
from django.contrib.postgres.fields import ArrayField
from django.db import IntegrityError, models, transaction
from django.db.models import Max
from django.utils.timezone import now

from adapterhub.accounts.actor import Actor
from adapterhub.accounts.models import Project, User
from adapterhub.api.errors import Conflict, Invalid, InvalidTransition
from adapterhub.artifacts import open_store
from adapterhub.audit.models import AuditEvent
from adapterhub.audit.tags import Tag
from registry.manifest import Manifest
from registry.models.base_model import BaseModel


class AdapterQuerySet(models.QuerySet["Adapter"]):
    def live(self) -> AdapterQuerySet:
        return self.filter(archived_at=None)


class Adapter(models.Model):
    """A named line of work on one base model; its versions are what is trained, served and compared."""

    project = models.ForeignKey(Project, models.PROTECT, related_name="adapters")
    slug = models.SlugField(unique=True)
    base_model = models.ForeignKey(BaseModel, models.PROTECT, related_name="adapters")
    description = models.TextField(blank=True)
    tags = ArrayField(models.CharField(max_length=50), default=list, blank=True)
    archived_at = models.DateTimeField(null=True, blank=True)
    created_at = models.DateTimeField(default=now, editable=False)

    objects = AdapterQuerySet.as_manager()

    class Meta:
        ordering = ["slug"]

    def __str__(self) -> str:
        return self.slug

    @classmethod
    def create(cls, *, project: Project, slug: str, base_model: BaseModel, by: Actor, **fields: Any) -> Adapter:
        """Open a line of work. Slugs are unique in the installation and never reused."""
        try:
            with transaction.atomic():
                adapter = cls.objects.create(project=project, slug=slug, base_model=base_model, **fields)
                AuditEvent.record(Tag.ADAPTER_CREATED, adapter, by=by, project=project)
        except IntegrityError:
            raise Conflict(f"The slug {slug!r} is taken: choose another.", field="slug", code="slug_taken") from None
        return adapter

    def describe(self, *, by: Actor, **changes: Any) -> None:
        """Change description or tags."""
        with transaction.atomic():
            before = {name: getattr(self, name) for name in changes}
            for name, value in changes.items():
                setattr(self, name, value)
            self.save(update_fields=list(changes))
            AuditEvent.record(Tag.ADAPTER_CHANGED, self, by=by, project=self.project, before=before, after=changes)


class VersionStatus(models.TextChoices):
    CHECKING = "checking"
    READY = "ready"
    REJECTED = "rejected"
    ARCHIVED = "archived"


class AdapterVersionQuerySet(models.QuerySet["AdapterVersion"]):
    def ready(self) -> AdapterVersionQuerySet:
        return self.filter(status=VersionStatus.READY)

    def trained_on(self, base_model: BaseModel) -> AdapterVersionQuerySet:
        return self.filter(adapter__base_model=base_model)


class AdapterVersion(models.Model):
    """Weights that never change. A trigger refuses UPDATE of anything but the status, and DELETE."""

    adapter = models.ForeignKey(Adapter, models.PROTECT, related_name="versions")
    number = models.PositiveIntegerField()
    digest = models.CharField(max_length=64)
    served_name = models.CharField(max_length=120, unique=True)
    status = models.CharField(max_length=20, choices=VersionStatus.choices, default=VersionStatus.READY)
    base_digest = models.CharField(max_length=64)
    method = models.CharField(max_length=20)
    max_rank = models.PositiveIntegerField()
    ranks = models.JSONField(help_text="module name -> rank")
    parameters = models.PositiveBigIntegerField()
    size_bytes = models.PositiveBigIntegerField()
    metrics = models.JSONField(default=dict)
    lineage = models.JSONField(default=dict)
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

    def __str__(self) -> str:
        return f"{self.adapter.slug} v{self.number}"

    @property
    def project(self) -> Project:
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
    ) -> AdapterVersion:
        """Store the folder's weights and record them as the adapter's next version.

        Bytes before rows: a crash leaves an orphan artifact, never a version without weights. Raises Invalid when
        the files are not an adapter of the base model.
        """
        manifest = Manifest.read(folder, adapter.base_model.linear_shapes(), adapter.base_model.layers)
        digest = open_store(settings.ARTIFACT_STORE, endpoint_url=settings.S3_ENDPOINT_URL).put_dir(folder)
        with transaction.atomic():
            Adapter.objects.select_for_update().get(pk=adapter.pk)
            if twin := cls.objects.filter(adapter=adapter, digest=digest).first():
                raise Conflict(f"These weights are {twin} already.", code="version_exists")
            number = (cls.objects.filter(adapter=adapter).aggregate(Max("number"))["number__max"] or 0) + 1
            version = cls.objects.create(
                adapter=adapter,
                number=number,
                digest=digest,
                served_name=f"{adapter.slug}.v{number}-{digest[:12]}",
                base_digest=adapter.base_model.digest,
                method=method,
                max_rank=manifest.max_rank,
                ranks=manifest.ranks,
                parameters=manifest.parameters,
                size_bytes=manifest.size_bytes,
                metrics=metrics or {},
                lineage=lineage or {},
                created_by=by.user,
            )
            AuditEvent.record(
                Tag.VERSION_PUBLISHED,
                version,
                by=by,
                project=adapter.project,
                after={"digest": digest, "served_name": version.served_name},
                evidence=metrics,
            )
        return version

    def archive(self, *, reason: str, by: Actor) -> None:
        """Take the version out of use; it stays in the history. Refused while something serves it."""
        with transaction.atomic():
            version = AdapterVersion.objects.select_for_update().get(pk=self.pk)
            if version.status == VersionStatus.ARCHIVED:
                raise InvalidTransition(f"{version} is archived already.")
            if version.aliases.exists() or version.candidate_of.active().exists():
                raise InvalidTransition(f"{version} is served by an alias or a rollout: move it first.")
            AdapterVersion.objects.filter(pk=self.pk).update(status=VersionStatus.ARCHIVED)
            AuditEvent.record(Tag.VERSION_ARCHIVED, version, by=by, project=version.project, reason=reason)
        self.refresh_from_db()

    def require_servable_on(self, cluster: Any) -> None:
        """Raises Invalid with the reason when the cluster cannot serve this version."""
        if self.status != VersionStatus.READY:
            raise Invalid(f"{self} is {self.status}, not ready.", field="version", code="version_not_ready")
        if self.base_digest != cluster.base_model.digest:
            raise Invalid(
                f"{self} was trained on another base model than {cluster} serves.", field="version", code="wrong_base"
            )
        if self.max_rank > cluster.max_lora_rank:
            raise Invalid(
                f"{self} has rank {self.max_rank}; {cluster} serves at most {cluster.max_lora_rank}.",
                field="version",
                code="rank_too_high",
            )

    def served_folder(self) -> Path:
        """A verified local copy at a path of its own; replicas load from there."""
        return self.fetch(settings.SERVED_DIR / self.digest)

    def fetch(self, target: Path) -> Path:
        """A verified copy of the stored files at `target`. Raises ArtifactError."""
        return open_store(settings.ARTIFACT_STORE, endpoint_url=settings.S3_ENDPOINT_URL).fetch_dir(self.digest, target)
