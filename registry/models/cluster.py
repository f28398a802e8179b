"""Clusters and their replicas: where versions are served, and what was last seen there."""

from __future__ import annotations

from typing import Any

from django.db import IntegrityError, models, transaction
from django.utils.timezone import now

from adapterhub.accounts.actor import Actor
from adapterhub.accounts.models import Project
from adapterhub.api.errors import Conflict, Invalid
from adapterhub.audit.models import AuditEvent
from adapterhub.audit.tags import Tag
from registry.models.base_model import BaseModel

VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


class Cluster(models.Model):
    """Replicas of one engine with one base model, reached through the router."""

    class Engine(models.TextChoices):
        EMBEDDED = "embedded"
        VLLM = "vllm", "vLLM"

    project = models.ForeignKey(Project, models.PROTECT, related_name="clusters")
    slug = models.SlugField(unique=True)
    base_model = models.ForeignKey(BaseModel, models.PROTECT, related_name="clusters")
    engine = models.CharField(max_length=20, choices=Engine.choices, default=Engine.EMBEDDED)
    max_lora_rank = models.PositiveIntegerField(default=64, choices=[(rank, str(rank)) for rank in VLLM_RANKS])
    max_loras = models.PositiveIntegerField(default=8, help_text="Adapters a replica holds at once.")
    created_at = models.DateTimeField(default=now, editable=False)

    class Meta:
        ordering = ["slug"]

    def __str__(self) -> str:
        return self.slug

    @classmethod
    def create(cls, *, project: Project, slug: str, base_model: BaseModel, by: Actor, **fields: Any) -> Cluster:
        """Declare a cluster; replicas are added to it one by one."""
        try:
            with transaction.atomic():
                cluster = cls.objects.create(project=project, slug=slug, base_model=base_model, **fields)
                AuditEvent.record(Tag.CLUSTER_CREATED, cluster, by=by, project=project)
        except IntegrityError:
            raise Conflict(f"The slug {slug!r} is taken: choose another.", field="slug", code="slug_taken") from None
        return cluster

    def add_replica(self, *, url: str, by: Actor) -> Replica:
        """Make a running engine process a part of this cluster."""
        if not url.startswith(("http://", "https://")):
            raise Invalid("A replica is reached by http:// or https://.", field="url")
        try:
            with transaction.atomic():
                replica = Replica.objects.create(cluster=self, url=url.rstrip("/"))
                AuditEvent.record(Tag.REPLICA_ADDED, replica, by=by, project=self.project, after={"url": url})
                reconcile_soon()
        except IntegrityError:
            raise Conflict(f"{url} belongs to a cluster already.", field="url", code="replica_exists") from None
        return replica


class ReplicaQuerySet(models.QuerySet["Replica"]):
    def holding(self, served_name: str) -> ReplicaQuerySet:
        """Healthy replicas that were seen to hold the version."""
        return self.filter(is_healthy=True, loaded__has_key=served_name)


class Replica(models.Model):
    """One engine process. `loaded` is what it reported: served name -> path."""

    cluster = models.ForeignKey(Cluster, models.PROTECT, related_name="replicas")
    url = models.URLField(unique=True, max_length=300)
    is_healthy = models.BooleanField(default=False, editable=False)
    engine_version = models.CharField(max_length=60, blank=True, editable=False)
    loaded = models.JSONField(default=dict, editable=False)
    refused = models.JSONField(default=dict, editable=False, help_text="served name -> why its load failed")
    message = models.TextField(blank=True, editable=False)
    seen_at = models.DateTimeField(null=True, editable=False)

    objects = ReplicaQuerySet.as_manager()

    class Meta:
        ordering = ["id"]

    def __str__(self) -> str:
        return self.url

    def saw(self, loaded: dict[str, str], engine_version: str) -> None:
        """Keep what the replica reported. One that comes back may take what its predecessor refused."""
        self.refused = self.refused if self.is_healthy else {}
        self.is_healthy, self.loaded, self.engine_version, self.message = True, loaded, engine_version, ""
        self.seen_at = now()
        self.save()

    def missed(self, message: str) -> None:
        """It did not answer: nothing is routed to it until it does."""
        self.is_healthy, self.loaded, self.message = False, {}, message
        self.save()


def reconcile_soon() -> None:
    """Wake the control loop after the commit; if the message is lost, the next tick does it."""
    from registry.tasks import publish_and_reconcile

    transaction.on_commit(publish_and_reconcile)
