"""Clusters, on which versions are served, and their replicas, with the last observed state of each."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from django.db import IntegrityError, models, transaction
from django.utils.timezone import now

from adapterhub.accounts.models import Project
from adapterhub.audit.models import AuditEvent
from adapterhub.audit.tags import Tag
from adapterhub.core.actor import Actor
from adapterhub.core.domain_signals import send_on_commit
from adapterhub.core.errors import Conflict, Invalid
from registry.domain_signals import cluster_changed
from registry.models.base_model import BaseModel
from serving_client.slots import VLLM_RANKS

FLAPS, FLAP_WINDOW = 3, timedelta(minutes=10)
FIRST_REST, MAX_REST = timedelta(seconds=30), timedelta(minutes=5)


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

    @property
    def slot_bytes(self) -> int:
        """The bytes that vLLM reserves for one adapter slot in bfloat16: the highest rank in every module."""
        return self.base_model.slot_bytes(self.max_lora_rank)

    @property
    def slots_bytes(self) -> int:
        """Return the memory of all slots of a replica."""
        return self.max_loras * self.slot_bytes

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
        """Add a running engine process to this cluster. Raises Invalid or Conflict for a bad or taken address."""
        if not url.startswith(("http://", "https://")):
            raise Invalid("The address of a replica must start with http:// or https://.", field="url")
        try:
            with transaction.atomic():
                replica = Replica.objects.create(cluster=self, url=url.rstrip("/"))
                AuditEvent.record(Tag.REPLICA_ADDED, replica, by=by, project=self.project, after={"url": url})
                send_on_commit(cluster_changed)
        except IntegrityError:
            raise Conflict(f"{url} already belongs to a cluster.", field="url", code="replica_exists") from None
        return replica


class Replica(models.Model):
    """One engine process. `loaded` holds the adapters that we loaded and probed there: served name -> path."""

    cluster = models.ForeignKey(Cluster, models.PROTECT, related_name="replicas")
    url = models.URLField(unique=True, max_length=300)
    is_healthy = models.BooleanField(default=False, editable=False)
    engine_version = models.CharField(max_length=60, blank=True, editable=False)
    loaded = models.JSONField(default=dict, editable=False)
    refused = models.JSONField(default=dict, editable=False, help_text="served name -> why its load failed")
    message = models.TextField(blank=True, editable=False)
    seen_at = models.DateTimeField(null=True, editable=False)
    returns = models.JSONField(default=list, editable=False, help_text="When it came back lately, epoch seconds.")
    rests_until = models.DateTimeField(null=True, editable=False)

    class Meta:
        ordering = ["id"]

    def __str__(self) -> str:
        return self.url

    def saw(self, reported: dict[str, str], engine_version: str) -> None:
        """Record a report: the replica is healthy and holds those reported adapters that we loaded and probed there.

        Other reported adapters are probed before they get traffic. A replica that comes back is asked again for what it
        refused before, and all its adapters are checked again.
        """
        refused = self.refused if self.is_healthy else {}
        if not self.is_healthy and self.seen_at:
            self._came_back(now())
        self.seen_at = now()
        known = {name: path for name, path in self.loaded.items() if reported.get(name) == path}
        self._now(is_healthy=True, loaded=known, refused=refused, engine_version=engine_version, message="")

    def missed(self, message: str) -> None:
        """Mark the replica unhealthy because it did not answer; nothing is routed to it until it does."""
        self._now(is_healthy=False, loaded={}, message=message)

    @property
    def is_resting(self) -> bool:
        """True while the replica rests after flapping: it holds versions, but gets traffic only if no other can."""
        return self.rests_until is not None and self.rests_until > now()

    def _came_back(self, moment: datetime) -> None:
        """Count a return; from the third in ten minutes on, rest for 30 s, doubled each time, at most five minutes."""
        returns = [at for at in self.returns if at > (moment - FLAP_WINDOW).timestamp()] + [moment.timestamp()]
        extra = len(returns) - FLAPS
        rest = min(MAX_REST, FIRST_REST * 2 ** min(extra, 10)) if extra >= 0 else timedelta(0)
        self._now(returns=returns, rests_until=moment + rest if rest else None)

    def _now(self, **fields: Any) -> None:
        """Save these fields if one of them changed; the control loop calls this often."""
        changed = [name for name, value in fields.items() if getattr(self, name) != value]
        for name in changed:
            setattr(self, name, fields[name])
        if changed:
            self.save(update_fields=[*changed, "seen_at"])
