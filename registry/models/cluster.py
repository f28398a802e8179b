"""Clusters, on which versions are served, and their replicas, with the last observed state of each."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from django.conf import settings
from django.contrib.postgres.fields import ArrayField
from django.db import IntegrityError, connection, models, transaction
from django.utils.timezone import now

from adapterhub.accounts.models import Project
from adapterhub.audit.models import AuditEvent
from adapterhub.audit.tags import Tag
from adapterhub.core.actor import Actor
from adapterhub.core.domain_signals import send_on_commit
from adapterhub.core.errors import Conflict, Invalid
from adapterhub.outbound import Forbidden, require_engine
from registry.domain_signals import cluster_changed
from registry.models.base_model import BaseModel
from serving_client.vllm_slots import VLLM_RANKS

FLAPS, FLAP_WINDOW = 3, timedelta(minutes=10)
FIRST_REST, MAX_REST = timedelta(seconds=30), timedelta(minutes=5)


class ClusterQuerySet(models.QuerySet["Cluster"]):
    """Queries for clusters by the projects that they serve."""

    def serving(self, project: Any) -> ClusterQuerySet:
        """Return the clusters that may serve the project: its own, and those whose grant it has accepted."""
        accepted = ClusterGrant.objects.standing().filter(project=project)
        return self.filter(models.Q(project=project) | models.Q(pk__in=accepted.values("cluster")))

    def offered_to(self, project: Any) -> ClusterQuerySet:
        """Return the clusters on which the project may put an alias.

        Its own, and those granted to it, accepted or not.
        """
        granted = ClusterGrant.objects.standing().filter(offered_to=project.slug)
        return self.filter(models.Q(project=project) | models.Q(pk__in=granted.values("cluster")))


class Cluster(models.Model):
    """Replicas of one engine with one base model, reached through the router.

    They serve the cluster's own project, and others by a `ClusterGrant`.
    """

    class Engine(models.TextChoices):
        EMBEDDED = "embedded"
        VLLM = "vllm", "vLLM"

    project = models.ForeignKey(Project, models.PROTECT, related_name="clusters")
    slug = models.SlugField()
    base_model = models.ForeignKey(BaseModel, models.PROTECT, related_name="clusters")
    engine = models.CharField(max_length=20, choices=Engine.choices, default=Engine.EMBEDDED)
    max_lora_rank = models.PositiveIntegerField(default=64, choices=[(rank, str(rank)) for rank in VLLM_RANKS])
    max_loras = models.PositiveIntegerField(default=8, help_text="Adapters a replica holds at once.")
    created_at = models.DateTimeField(default=now, editable=False)
    reconciled_at = models.DateTimeField(null=True, editable=False, help_text="End of its last complete round.")

    objects = ClusterQuerySet.as_manager()

    class Meta:
        ordering = ["slug"]
        constraints = [models.UniqueConstraint(fields=["project", "slug"], name="one_cluster_per_slug")]

    def __str__(self) -> str:
        return self.slug

    @property
    def ref(self) -> str:
        """The reference that names it among all projects: `project.cluster`."""
        return f"{self.project.slug}.{self.slug}"

    @property
    def slot_bytes(self) -> int:
        """The bytes that vLLM reserves for one adapter slot in bfloat16: the highest rank in every module."""
        return self.base_model.slot_bytes(self.max_lora_rank)

    @property
    def slots_bytes(self) -> int:
        """Return the bytes of all adapter slots of a replica: `slot_bytes` times `max_loras`."""
        return self.max_loras * self.slot_bytes

    @classmethod
    def create(cls, *, project: Project, slug: str, base_model: BaseModel, by: Actor, **fields: Any) -> Cluster:
        """Create a cluster without replicas, which are added one by one, and record it.

        Raises Conflict for a used slug.
        """
        try:
            with transaction.atomic():
                cluster = cls.objects.create(project=project, slug=slug, base_model=base_model, **fields)
                AuditEvent.record(Tag.CLUSTER_CREATED, cluster, by=by, project=project)
        except IntegrityError:
            raise Conflict(f"The slug {slug!r} is taken: choose another.", field="slug", code="slug_taken") from None
        return cluster

    def projects(self) -> models.QuerySet[Project]:
        """Return the projects that the cluster serves: its own, and those that accepted a grant."""
        accepted = self.grants.standing().exclude(project=None)
        return Project.objects.filter(models.Q(pk=self.project_id) | models.Q(pk__in=accepted.values("project")))

    def served_aliases(self) -> models.QuerySet[Any]:
        """Return the aliases on this cluster, without those of projects whose grant was withdrawn."""
        return self.aliases.filter(project__in=self.projects())

    def grant(self, project: str, *, by: Actor, reason: str = "") -> ClusterGrant:
        """Grant the cluster to the project of this slug, which accepts by putting an alias on it.

        The project is not looked up, so that nobody learns which slugs exist. Raises Invalid for the own project,
        Conflict for a grant that stands.
        """
        if project == self.project.slug:
            raise Invalid(f"{self} belongs to {project!r}, which needs no grant.", field="project", code="own_cluster")
        try:
            with transaction.atomic():
                granted = self.grants.create(offered_to=project, granted_by=by.name)
                self._record(Tag.CLUSTER_GRANTED, by=by, reason=reason, project=project)
        except IntegrityError:
            raise Conflict(
                f"{self} is granted to {project!r} already.", field="project", code="already_granted"
            ) from None
        return granted

    def withdraw(self, project: str, *, by: Actor, reason: str) -> ClusterGrant:
        """Withdraw the grant: the cluster's replicas unload the project's versions and get no more of its requests.

        Raises Invalid if no grant stands.
        """
        with transaction.atomic():
            granted = self.grants.standing().select_for_update().filter(offered_to=project).first()
            if granted is None:
                raise Invalid(f"{self} is not granted to {project!r}.", field="project", code="not_granted")
            granted.withdrawn_at = now()
            granted.save(update_fields=["withdrawn_at"])
            self._record(Tag.CLUSTER_GRANT_WITHDRAWN, by=by, reason=reason, project=project)
            send_on_commit(cluster_changed)
        return granted

    def accept_for(self, project: Project, *, by: Actor) -> None:
        """Accept, for the project, the grant of this cluster; no effect on the own project or an accepted grant.

        Raises Invalid if there is no grant.
        """
        if project.pk == self.project_id:
            return
        granted = self.grants.standing().select_for_update().filter(offered_to=project.slug).first()
        if granted is None:
            raise not_granted(self)
        if granted.project_id is None:
            granted.project = project
            granted.save(update_fields=["project"])
            after = {"project": project.slug}
            AuditEvent.record(Tag.CLUSTER_GRANT_ACCEPTED, self, by=by, project=project, after=after)

    def require_offered(self, project: Project) -> None:
        """Require that the cluster is the project's own, or granted to it whether accepted or not. Raises Invalid."""
        if project.pk != self.project_id and not self.grants.standing().filter(offered_to=project.slug).exists():
            raise not_granted(self)

    def require_serves(self, project: Project) -> None:
        """Check that the cluster is the project's own, or that the project accepted its grant. Raises Invalid."""
        if project.pk != self.project_id and not self.grants.standing().filter(project=project).exists():
            raise not_granted(self)

    def _record(self, tag: Tag, *, by: Actor, reason: str, project: str) -> None:
        AuditEvent.record(tag, self, by=by, project=self.project, after={"project": project}, reason=reason)

    def add_replica(self, *, url: str, by: Actor) -> Replica:
        """Add a running engine process to this cluster and start the control loop after the commit.

        Raises Invalid for an address that no engine may have here, and Conflict for an engine that is a replica
        already.
        """
        try:
            endpoints = require_engine(url, settings.ENGINE_HOSTS)
        except (Forbidden, ValueError) as error:
            raise Invalid(str(error), field="url", code="forbidden_address") from None
        try:
            with transaction.atomic():
                self._require_no_other(endpoints, url)
                replica = Replica.objects.create(cluster=self, url=url.rstrip("/"), endpoints=endpoints)
                AuditEvent.record(Tag.REPLICA_ADDED, replica, by=by, project=self.project, after={"url": url})
                send_on_commit(cluster_changed)
        except IntegrityError:
            raise taken(url) from None
        return replica

    def _require_no_other(self, endpoints: list[str], url: str) -> None:
        """Check that no replica is this engine under another address. Raises Conflict, naming a replica of ours."""
        with connection.cursor() as cursor:
            # Two requests at a time would not see each other's replica.
            cursor.execute("SELECT pg_advisory_xact_lock(hashtext('adapterhub replicas'))")
        for other in Replica.objects.filter(endpoints__overlap=endpoints).select_related("cluster"):
            raise taken(url, other if other.cluster.project_id == self.project_id else None)


def taken(url: str, other: Replica | None = None) -> Conflict:
    """Return, without raising it, the error of an engine that is a replica already.

    The replica `other` is named only if it is given: callers give it for their own project alone.
    """
    owner = f" as {other} of {other.cluster}" if other else ""
    return Conflict(
        f"{url} is the engine of a replica already{owner}: give each engine to one cluster, under one address.",
        field="url",
        code="replica_exists",
    )


def not_granted(cluster: Cluster) -> Invalid:
    """Return, without raising it, the error of a cluster that was not granted to the project."""
    return Invalid(
        f"{cluster} does not serve this project: its owner grants it with POST clusters/{cluster}/grants/.",
        field="cluster",
        code="cluster_not_granted",
    )


class ReplicaQuerySet(models.QuerySet["Replica"]):
    """Queries for replicas by what they serve."""

    def lengths(self, base_model: BaseModel, project: Project) -> list[int]:
        """Return the context lengths that the engines of a base model serve to a project, in tokens, shortest first.

        Each length is there once; engines that name none are left out.
        """
        clusters = Cluster.objects.serving(project).filter(base_model=base_model)
        known = self.filter(cluster__in=clusters, max_length__isnull=False)
        return sorted({length for length in known.values_list("max_length", flat=True) if length is not None})


class ClusterGrantQuerySet(models.QuerySet["ClusterGrant"]):
    """Queries for grants by their state."""

    def standing(self) -> ClusterGrantQuerySet:
        """Return the grants that were not withdrawn."""
        return self.filter(withdrawn_at=None)


class ClusterGrant(models.Model):
    """The permission of a cluster's owner that its replicas serve another project, and that project's acceptance.

    `project` is set when the project accepts: nobody's versions go to a cluster that its project did not choose.
    """

    cluster = models.ForeignKey(Cluster, models.PROTECT, related_name="grants")
    offered_to = models.SlugField(help_text="Slug of the project, whether it exists or not.")
    project = models.ForeignKey(Project, models.PROTECT, null=True, related_name="grants")
    granted_by = models.CharField(max_length=200)
    granted_at = models.DateTimeField(default=now, editable=False)
    withdrawn_at = models.DateTimeField(null=True, editable=False)

    objects = ClusterGrantQuerySet.as_manager()

    class Meta:
        ordering = ["-granted_at", "-id"]
        constraints = [
            models.UniqueConstraint(
                fields=["cluster", "offered_to"],
                condition=models.Q(withdrawn_at=None),
                name="one_standing_grant_per_project",
            )
        ]

    def __str__(self) -> str:
        return f"{self.cluster} for {self.offered_to}"


class Replica(models.Model):
    """One engine process. `loaded` holds the adapters that we loaded and probed there: served name -> path."""

    cluster = models.ForeignKey(Cluster, models.PROTECT, related_name="replicas")
    url = models.URLField(unique=True, max_length=300)
    endpoints = ArrayField(models.CharField(max_length=300), default=list, editable=False)
    is_healthy = models.BooleanField(default=False, editable=False)
    engine_version = models.CharField(max_length=60, blank=True, editable=False)
    max_length = models.PositiveIntegerField(
        null=True, editable=False, help_text="Tokens of a request and its answer that its engine serves."
    )
    loaded = models.JSONField(default=dict, editable=False)
    refused = models.JSONField(default=dict, editable=False, help_text="served name -> why its load failed")
    message = models.TextField(blank=True, editable=False)
    seen_at = models.DateTimeField(null=True, editable=False)
    returns = models.JSONField(default=list, editable=False, help_text="When it came back lately, epoch seconds.")
    rests_until = models.DateTimeField(null=True, editable=False)

    objects = ReplicaQuerySet.as_manager()

    class Meta:
        ordering = ["id"]

    def __str__(self) -> str:
        return self.url

    def saw(
        self,
        reported: dict[str, str],
        engine_version: str,
        endpoints: Sequence[str] = (),
        max_length: int | None = None,
    ) -> None:
        """Record a report: the replica is healthy and holds those reported adapters that we loaded and probed there.

        `reported` maps served names to paths. Other reported adapters are probed before they get traffic. A replica
        that comes back is asked again for what it refused before, and all its adapters are checked again.
        """
        refused = self.refused if self.is_healthy else {}
        if not self.is_healthy and self.seen_at:
            self._came_back(now())
        self.seen_at = now()
        known = {name: path for name, path in self.loaded.items() if reported.get(name) == path}
        where = list(endpoints) or self.endpoints
        fields = {"engine_version": engine_version, "max_length": max_length, "endpoints": where, "message": ""}
        self._now(is_healthy=True, loaded=known, refused=refused, **fields)

    def twin(self, endpoints: Sequence[str]) -> Replica | None:
        """Return a replica that was added before this one and has one of these endpoints, so that both are one engine.

        Else None.
        """
        return Replica.objects.filter(endpoints__overlap=list(endpoints), pk__lt=self.pk).first()

    def missed(self, message: str) -> None:
        """Mark the replica unhealthy, with the reason, because it did not answer.

        Nothing is routed to it until it does.
        """
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
