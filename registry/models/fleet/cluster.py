"""Clusters, on which versions are served, and their grants to other projects."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.db import IntegrityError, connection, models, transaction
from django.utils.timezone import now

from adapterhub.accounts.models import Project
from adapterhub.audit.models import AuditEvent
from adapterhub.audit.tags import Tag
from adapterhub.core.actor import Actor
from adapterhub.core.counts import counted
from adapterhub.core.domain_signals import send_on_commit
from adapterhub.core.errors import Conflict, Invalid
from adapterhub.encryption import box
from adapterhub.outbound import Forbidden, require_engine
from registry.domain_signals import cluster_changed
from registry.models.base_model import BaseModel
from registry.models.fleet.grant import ClusterGrant
from registry.replica_sources.address import MEANING, require_source
from serving_client.engine_hosts import normalised
from serving_client.protocol import LEAST_LOADED, PREFIX_AFFINITY
from serving_client.vllm_slots import VLLM_RANKS

# The purpose of the key that encrypts engines' API keys in the database.
ENGINE_KEY = "engine key"


class ClusterQuerySet(models.QuerySet["Cluster"]):
    """Clusters, selected by the projects that they serve."""

    def serving(self, project: Any) -> ClusterQuerySet:
        """Return the clusters that may serve the project: its own, and those whose grant it has accepted."""
        accepted = ClusterGrant.objects.standing().filter(project=project)
        return self.filter(models.Q(project=project) | models.Q(pk__in=accepted.values("cluster")))

    def offered_to(self, project: Any) -> ClusterQuerySet:
        """Return the clusters on which the project may put an alias: its own, and those granted to it.

        A grant counts whether it was accepted or not.
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

    class Routing(models.TextChoices):
        LEAST_LOADED = LEAST_LOADED, "Least loaded"
        PREFIX_AFFINITY = PREFIX_AFFINITY, "Prefix affinity"

    project = models.ForeignKey(Project, models.PROTECT, related_name="clusters")
    slug = models.SlugField()
    base_model = models.ForeignKey(BaseModel, models.PROTECT, related_name="clusters")
    engine = models.CharField(max_length=20, choices=Engine.choices, default=Engine.EMBEDDED)
    max_lora_rank = models.PositiveIntegerField(default=64, choices=[(rank, str(rank)) for rank in VLLM_RANKS])
    max_loras = models.PositiveIntegerField(default=8, help_text="Adapters a replica holds at once.")
    routing = models.CharField(
        max_length=20,
        choices=Routing.choices,
        default=Routing.LEAST_LOADED,
        db_default=Routing.LEAST_LOADED,
        help_text="How routers choose among the replicas that hold a version.",
    )
    sealed_key = models.BinaryField(
        default=b"", db_default=b"", editable=False, help_text="Its engines' API key, encrypted."
    )
    discovery = models.CharField(max_length=300, blank=True, default="", db_default="", help_text=MEANING)
    discovered_at = models.DateTimeField(null=True, editable=False, help_text="When its source last answered.")
    discovery_message = models.TextField(
        blank=True, default="", db_default="", editable=False, help_text="What stands in the way there."
    )
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
        """The cluster's name among all projects: `project.cluster`."""
        return f"{self.project.slug}.{self.slug}"

    @property
    def slot_bytes(self) -> int:
        """The bytes that vLLM reserves for one adapter slot in bfloat16, with the highest rank in every module."""
        return self.base_model.slot_bytes(self.max_lora_rank)

    @property
    def slots_bytes(self) -> int:
        """Return the bytes of all adapter slots of a replica: `slot_bytes` times `max_loras`."""
        return self.max_loras * self.slot_bytes

    @property
    def engine_key(self) -> str:
        """The decrypted API key that its engines were started with (`vllm --api-key`); "" for engines without one."""
        return box(ENGINE_KEY).decrypt(bytes(self.sealed_key)).decode() if self.sealed_key else ""

    @classmethod
    def create(
        cls, *, project: Project, slug: str, base_model: BaseModel, by: Actor, engine_key: str = "", **fields: Any
    ) -> Cluster:
        """Create, record and return a cluster without replicas, which are added one by one or found by its source.

        `engine_key` is the API key of its engines, which is stored encrypted; "" for none. Raises Conflict for a used
        slug, and Invalid for the address of a source that is not valid.
        """
        fields["sealed_key"] = sealed(engine_key)
        require_source(fields.get("discovery", ""))
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

    def live_names(self) -> set[str]:
        """Return the served names of the versions that its aliases and their active rollouts serve."""
        aliases = self.served_aliases()
        stable = aliases.values_list("version__served_name", flat=True)
        rollouts = aliases.model.rollouts.rel.related_model.objects.active().filter(alias__in=aliases)
        return {*stable, *rollouts.values_list("candidate__served_name", flat=True)}

    def grant(self, project: str, *, by: Actor, reason: str = "", **shares: Any) -> ClusterGrant:
        """Grant the cluster to the project of this slug, which accepts by putting an alias on it.

        Record and return the grant. `shares` are what it may use: `slots`, `requests_per_s`, `tokens_per_min`; without
        them slots are divided equally, and there is no limit. The project is not looked up, so that nobody learns which
        slugs exist. Raises Invalid for the cluster's own project and for more slots than the cluster has, and Conflict
        if it is granted to the project already.
        """
        if project == self.project.slug:
            raise Invalid(f"{self} belongs to {project!r}, which needs no grant.", field="project", code="own_cluster")
        try:
            with transaction.atomic():
                self._require_slots(shares.get("slots"), but=project)
                granted = self.grants.create(offered_to=project, granted_by=by.name, **shares)
                self._record(Tag.CLUSTER_GRANTED, by=by, reason=reason, project=project, **shares)
        except IntegrityError:
            raise Conflict(
                f"{self} is granted to {project!r} already.", field="project", code="already_granted"
            ) from None
        return granted

    def change_grant(self, project: str, *, by: Actor, reason: str, **shares: Any) -> ClusterGrant:
        """Change the shares of a project's grant, record that, and return the grant.

        Routers and replicas follow on commit. Raises Invalid if the cluster is not granted to the project, and for more
        slots than the cluster has.
        """
        with transaction.atomic():
            granted = self._standing_grant(project)
            self._require_slots(shares.get("slots"), but=project)
            for name, value in shares.items():
                setattr(granted, name, value)
            granted.save(update_fields=list(shares))
            self._record(Tag.CLUSTER_GRANT_CHANGED, by=by, reason=reason, project=project, **shares)
            send_on_commit(cluster_changed)
        return granted

    def _standing_grant(self, project: str) -> ClusterGrant:
        granted = self.grants.standing().select_for_update().filter(offered_to=project).first()
        if granted is None:
            raise Invalid(f"{self} is not granted to {project!r}.", field="project", code="not_granted")
        return granted

    def _require_slots(self, slots: int | None, *, but: str = "", most: int | None = None) -> None:
        """Require that the slots of all grants leave one to the cluster's own project. Raises Invalid."""
        Cluster.objects.select_for_update().get(pk=self.pk)
        others = self.grants.standing().exclude(offered_to=but).aggregate(total=models.Sum("slots"))["total"] or 0
        total = most or self.max_loras
        if (slots or others) and others + (slots or 0) >= total:
            raise Invalid(
                f"Of {counted(total, 'slot')} a replica {others} are granted, and one stays with {self.project}: "
                f"grant at most {max(0, total - 1 - others)} more.",
                field="max_loras" if most else "slots",
                code="share_too_large",
            )

    def withdraw(self, project: str, *, by: Actor, reason: str) -> ClusterGrant:
        """Withdraw a project's grant, record that, and return the grant.

        On commit the control loop is queued: the cluster's replicas unload the project's versions and no longer get its
        requests. Raises Invalid if the cluster is not granted to the project.
        """
        with transaction.atomic():
            granted = self._standing_grant(project)
            granted.withdrawn_at = now()
            granted.save(update_fields=["withdrawn_at"])
            self._record(Tag.CLUSTER_GRANT_WITHDRAWN, by=by, reason=reason, project=project)
            send_on_commit(cluster_changed)
        return granted

    def accept_for(self, project: Project, *, by: Actor) -> None:
        """Accept the grant of this cluster for the project, and record that.

        Nothing happens for the cluster's own project or an accepted grant. Raises Invalid if there is no grant.
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
        """Check that the cluster is the project's own, or granted to it, accepted or not. Raises Invalid."""
        if project.pk != self.project_id and not self.grants.standing().filter(offered_to=project.slug).exists():
            raise not_granted(self)

    def require_serves(self, project: Project) -> None:
        """Check that the cluster is the project's own, or that the project accepted its grant. Raises Invalid."""
        if project.pk != self.project_id and not self.grants.standing().filter(project=project).exists():
            raise not_granted(self)

    def _record(self, tag: Tag, *, by: Actor, reason: str, project: str, **shares: Any) -> None:
        after = {"project": project, **shares}
        AuditEvent.record(tag, self, by=by, project=self.project, after=after, reason=reason)

    def change(self, *, reason: str, by: Actor, confirm: bool = False, **fields: Any) -> None:
        """Change how its engines were started (limits, kind), the API key, the routing, or the source of its replicas.

        An `engine_key` of "" removes the key. The audit trail records the change, and of the key only that it changed;
        routers and replicas follow on commit. Raises Conflict if a version that serves requests has a rank above the
        new `max_lora_rank`, unless `confirm` is given; that version is then no longer served. Raises Invalid for fewer
        slots than are granted to projects, and for the address of a source that is not valid.
        """
        require_source(fields.get("discovery", ""))
        with transaction.atomic():
            cluster = Cluster.objects.select_for_update().get(pk=self.pk)
            self._require_ranks(fields.get("max_lora_rank"), confirm=confirm)
            if "max_loras" in fields:
                self._require_slots(None, most=fields["max_loras"])
            after = {name: value for name, value in fields.items() if name != "engine_key"}
            before = {name: getattr(cluster, name) for name in after}
            if "engine_key" in fields:
                before["has_engine_key"], after["has_engine_key"] = bool(cluster.sealed_key), bool(fields["engine_key"])
                fields["sealed_key"] = sealed(fields.pop("engine_key"))
            Cluster.objects.filter(pk=self.pk).update(**fields)
            what: dict[str, Any] = {"before": before, "after": after, "reason": reason}
            AuditEvent.record(Tag.CLUSTER_CHANGED, self, by=by, project=self.project, **what)
            send_on_commit(cluster_changed)
        self.refresh_from_db()

    def _require_ranks(self, most: int | None, *, confirm: bool) -> None:
        if most is not None:
            serving = self.aliases.model._meta.get_field("version").related_model._default_manager
            above = serving.filter(served_name__in=self.live_names(), max_rank__gt=most)
            require_confirmed(str(self), sorted(above.values_list("served_name", flat=True)), confirm=confirm)

    def drain(self, *, reason: str, by: Actor, confirm: bool = False) -> None:
        """Drain all replicas that are not drained yet, as `Replica.drain` does, and record each drain.

        Raises Conflict if they hold versions that serve requests, unless `confirm` is given.
        """
        with transaction.atomic():
            replicas = list(self.replicas.select_for_update().filter(draining_since=None).order_by("pk"))
            loaded = {name for replica in replicas if replica.is_healthy for name in replica.loaded}
            require_confirmed(str(self), sorted(loaded & self.live_names()), confirm=confirm)
            for replica in replicas:
                replica.drain(reason=reason, by=by, confirm=True)

    def remove(self, *, reason: str, by: Actor) -> None:
        """Delete the cluster with its grants, record that, and have the routers follow on commit.

        Raises Conflict while it has aliases or replicas. Aliases are never deleted, so a cluster that has had one
        stays.
        """
        with transaction.atomic():
            Cluster.objects.select_for_update().get(pk=self.pk)
            self._require_none(self.aliases.all(), "aliases", "Aliases are kept, and with them their cluster")
            self._require_none(self.replicas.all(), "replicas", "Delete them first")
            before = {"base_model": self.base_model.slug, "engine": self.engine}
            AuditEvent.record(Tag.CLUSTER_DELETED, self, by=by, project=self.project, before=before, reason=reason)
            self.grants.all().delete()
            Cluster.objects.filter(pk=self.pk).delete()
            send_on_commit(cluster_changed)

    def _require_none(self, rows: Any, kind: str, remedy: str) -> None:
        if count := rows.count():
            named = ", ".join(map(str, rows[:5]))
            raise Conflict(f"{self} has {count} {kind} ({named}). {remedy}.", field="cluster", code="cluster_in_use")

    def add_replica(self, *, url: str, by: Actor, is_discovered: bool = False) -> Any:
        """Add a running engine process to this cluster, record that, and return the replica.

        On commit the control loop is queued, which loads its versions. With `is_discovered` the cluster's source named
        the replica, and it is drained and deleted by itself when the source no longer does. Raises Invalid for an
        address that is not allowed, and Conflict for an engine that is a replica already.
        """
        url, endpoints = self.require_address(url)
        try:
            with transaction.atomic():
                self.require_no_other(endpoints, url)
                replica = self.replicas.create(url=url, endpoints=endpoints, is_discovered=is_discovered)
                AuditEvent.record(Tag.REPLICA_ADDED, replica, by=by, project=self.project, after={"url": url})
                send_on_commit(cluster_changed)
        except IntegrityError:
            raise taken(url) from None
        return replica

    def require_address(self, url: str) -> tuple[str, list[str]]:
        """Return an engine's address in its normal form, and its endpoints: every IP address with port and path.

        Raises Invalid for one that is malformed or that no operator allows, and for a host that has no address: a
        typing error would otherwise be noticed by an alarm only.
        """
        try:
            address, endpoints = normalised(url), require_engine(url, settings.ENGINE_HOSTS)
        except (Forbidden, ValueError) as error:
            raise Invalid(str(error), field="url", code="forbidden_address") from None
        if not endpoints:
            raise Invalid(
                f"The host of {address} does not resolve here: correct the address, or give the host its name first.",
                field="url",
                code="unresolved_address",
            )
        return address, endpoints

    def require_no_other(self, endpoints: list[str], url: str, *, but: int | None = None) -> None:
        """Raise Conflict if the engine at one of these endpoints already is a replica, under this address or another.

        `endpoints` are those of `require_address`; `but` is the primary key of a replica that is ignored. The error
        names the other replica only if it is of the same project. A lock until the end of the transaction makes
        parallel calls wait.
        """
        with connection.cursor() as cursor:
            # Two requests at a time would not see each other's replica.
            cursor.execute("SELECT pg_advisory_xact_lock(hashtext('adapterhub replicas'))")
        itself = [] if but is None else [but]
        others = self.replicas.model._default_manager.filter(endpoints__overlap=endpoints).exclude(pk__in=itself)
        for other in others.select_related("cluster"):
            raise taken(url, other if other.cluster.project_id == self.project_id else None)


def sealed(key: str) -> bytes:
    """Return an engine's API key encrypted; b"" for an empty key."""
    return box(ENGINE_KEY).encrypt(key.encode()) if key else b""


def require_confirmed(holder: str, names: list[str], *, confirm: bool) -> None:
    """Check that the caller confirmed to cut off live versions. Raises Conflict with their names if not.

    `names` are the live versions that only `holder` holds; if there is none, no confirmation is needed.
    """
    if names and not confirm:
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        raise Conflict(
            f"{holder} alone holds {', '.join(names[:5])}{more}, which serves requests now. Add a replica first, or "
            "confirm that they are cut off (confirm = true).",
            field="confirm",
            code="cuts_off",
        )


def taken(url: str, other: Any = None) -> Conflict:
    """Return, without raising it, the error of an engine that is a replica already.

    `other` is that replica, named in the error; callers give it only if it belongs to their own project.
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
