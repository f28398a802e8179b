"""Replicas, the engine processes of clusters: the changes that operators make, and the last observed state."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from django.conf import settings
from django.contrib.postgres.fields import ArrayField
from django.db import IntegrityError, connection, models, transaction
from django.utils.timezone import now

from adapterhub.accounts.models import Project
from adapterhub.audit.models import AuditEvent
from adapterhub.audit.tags import Tag
from adapterhub.core.actor import Actor
from adapterhub.core.domain_signals import send_on_commit
from registry.domain_signals import cluster_changed
from registry.models.base_model import BaseModel
from registry.models.fleet.cluster import Cluster, require_confirmed, taken

# Prefix of the names under which the control loop loads for a moment, to see whether two addresses are one engine.
MARKER = "ah-marker-"
# The state of a replica that was not asked yet.
UNSEEN: dict[str, Any] = {
    "is_healthy": False,
    "seen_at": None,
    "message": "",
    "loaded": {},
    "refused": {},
    "pushed": [],
    "foreign": [],
    "twin_of": None,
}
STORE = {
    "loaded": """UPDATE registry_replica SET loaded = kept.value
        FROM jsonb_to_recordset(%s::jsonb) AS kept(id bigint, url text, value jsonb)
        WHERE registry_replica.id = kept.id AND registry_replica.url = kept.url""",
    "pushed": """UPDATE registry_replica SET pushed = kept.value
        FROM jsonb_to_recordset(%s::jsonb) AS kept(id bigint, url text, value varchar[])
        WHERE registry_replica.id = kept.id AND registry_replica.url = kept.url""",
}
MOST_FOREIGN, LONGEST_NAME = 100, 300
FLAPS, FLAP_WINDOW = 3, timedelta(minutes=10)
FIRST_REST, MAX_REST = timedelta(seconds=30), timedelta(minutes=5)


def is_served_from(name: str, path: str) -> bool:
    """Return True if the path is where replicas find the files of the version of this served name."""
    folder = Path(path)
    return folder.parent == settings.SERVED_DIR and folder.name.startswith(name.rpartition("-")[2])


class ReplicaQuerySet(models.QuerySet["Replica"]):
    """Replicas, selected by what they serve."""

    def lengths(self, base_model: BaseModel, project: Project) -> list[int]:
        """Return the context lengths, in tokens, that engines with a base model serve to a project, shortest first.

        Each length occurs once; engines that do not report one are left out.
        """
        clusters = Cluster.objects.serving(project).filter(base_model=base_model)
        known = self.filter(cluster__in=clusters, max_length__isnull=False)
        return sorted({length for length in known.values_list("max_length", flat=True) if length is not None})

    def usable(self) -> ReplicaQuerySet:
        """Return the replicas that may get requests: those that answer and are not drained."""
        return self.filter(is_healthy=True, draining_since=None)

    def live_only_on(self, replica: Replica) -> list[str]:
        """Return the names of live versions that only this replica of its cluster holds, sorted.

        Empty if the replica does not answer or is drained. Other replicas count if they are usable.
        """
        if not replica.is_healthy or replica.draining_since:
            return []
        others = self.usable().filter(cluster=replica.cluster).exclude(pk=replica.pk)
        elsewhere = {name for loaded in others.values_list("loaded", flat=True) for name in loaded}
        return sorted((set(replica.loaded) & replica.cluster.live_names()) - elsewhere)


class Replica(models.Model):
    """One engine process.

    `loaded` maps the served names that the control loop loaded and probed there to their paths.
    """

    cluster = models.ForeignKey(Cluster, models.PROTECT, related_name="replicas")
    url = models.URLField(unique=True, max_length=300)
    endpoints = ArrayField(models.CharField(max_length=300), default=list, db_default=[], editable=False)
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
    draining_since = models.DateTimeField(null=True, editable=False, help_text="It gets no requests and loads nothing.")
    twin_of = models.ForeignKey(
        "self",
        models.SET_NULL,
        null=True,
        editable=False,
        related_name="+",
        help_text="The engine's older replica.",
    )
    is_discovered = models.BooleanField(
        default=False, db_default=False, editable=False, help_text="The cluster's source named it."
    )
    gone_since = models.DateTimeField(null=True, editable=False, help_text="Its source says that it is going.")
    pushed = ArrayField(
        models.CharField(max_length=LONGEST_NAME),
        default=list,
        db_default=[],
        editable=False,
        help_text="Names that we began to load.",
    )
    foreign = ArrayField(
        models.CharField(max_length=LONGEST_NAME),
        default=list,
        db_default=[],
        editable=False,
        help_text="Names that others loaded.",
    )

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

        `reported` maps names to paths. Empty `endpoints` keep the stored ones; `max_length` is the engine's context
        length in tokens, None if not reported. Other reported adapters are probed before they get traffic. So is what a
        row calls loaded though we never sent it, or though its path is not where we put that version's files. A replica
        that comes back is asked again for what it refused before, and all its adapters are checked again.
        """
        refused = self.refused if self.is_healthy else {}
        if not self.is_healthy and self.seen_at:
            self._came_back(now())
        self.seen_at = now()
        ours = sorted(set(self.pushed) & set(reported))
        unknown = sorted(name for name in set(reported) - set(ours) if not name.startswith(MARKER))
        # An engine may report anything.
        others = [name for name in unknown if len(name) <= LONGEST_NAME][:MOST_FOREIGN]
        confirmed = {name: path for name, path in self.loaded.items() if name in ours and reported[name] == path}
        known = {name: path for name, path in confirmed.items() if is_served_from(name, path)}
        where = list(endpoints) or self.endpoints
        fields = {"engine_version": engine_version, "max_length": max_length, "endpoints": where, "message": ""}
        self._now(is_healthy=True, loaded=known, refused=refused, pushed=ours, foreign=others, **fields)

    def change_address(self, url: str, *, reason: str, by: Actor) -> None:
        """Give the replica another address, forget what was observed at the old one, and record that.

        It gets traffic once the control loop, which is queued on commit, has reached it there. Raises Invalid for an
        address that is not allowed, and Conflict for an engine that is a replica already.
        """
        url, endpoints = self.cluster.require_address(url)
        try:
            with transaction.atomic():
                self.cluster.require_no_other(endpoints, url, but=self.pk)
                before = Replica.objects.select_for_update().get(pk=self.pk).url
                Replica.objects.filter(twin_of=self.pk).update(twin_of=None)
                Replica.objects.filter(pk=self.pk).update(url=url, endpoints=endpoints, **UNSEEN)
                what: dict[str, Any] = {"before": {"url": before}, "after": {"url": url}, "reason": reason}
                AuditEvent.record(Tag.REPLICA_CHANGED, self, by=by, project=self.cluster.project, **what)
                send_on_commit(cluster_changed)
        except IntegrityError:
            raise taken(url) from None
        self.refresh_from_db()

    def drain(self, *, reason: str, by: Actor, confirm: bool = False) -> None:
        """Send no more requests to the replica, and record that.

        It finishes running answers, then unloads its versions. Nothing happens if it is drained already. Raises
        Conflict if only it holds a live version, unless `confirm` is given.
        """
        with transaction.atomic():
            self._lock()
            cut_off = self.cuts_off(confirm=confirm)
            if self.draining_since is None:
                Replica.objects.filter(pk=self.pk).update(draining_since=now())
                after = {"cuts_off": cut_off}
                AuditEvent.record(
                    Tag.REPLICA_DRAINED, self, by=by, project=self.cluster.project, after=after, reason=reason
                )
                send_on_commit(cluster_changed)
        self.refresh_from_db()

    def resume(self, *, reason: str, by: Actor) -> None:
        """End the drain of a replica and record that; it serves again once the control loop has loaded its versions.

        No effect if it is not drained.
        """
        with transaction.atomic():
            self._lock()
            if self.draining_since is not None:
                Replica.objects.filter(pk=self.pk).update(draining_since=None)
                AuditEvent.record(Tag.REPLICA_RESUMED, self, by=by, project=self.cluster.project, reason=reason)
                send_on_commit(cluster_changed)
        self.refresh_from_db()

    def remove(self, *, reason: str, by: Actor, confirm: bool = False) -> None:
        """Delete the replica and record that.

        On commit it leaves the routing table, and its engine is no longer called. Raises Conflict if only it holds a
        live version, unless `confirm` is given.
        """
        with transaction.atomic():
            self._lock()
            what: dict[str, Any] = {"before": {"url": self.url}, "after": {"cuts_off": self.cuts_off(confirm=confirm)}}
            AuditEvent.record(Tag.REPLICA_DELETED, self, by=by, project=self.cluster.project, reason=reason, **what)
            Replica.objects.filter(pk=self.pk).delete()
            send_on_commit(cluster_changed)

    def cuts_off(self, *, confirm: bool) -> list[str]:
        """Return the live versions that only this replica holds, sorted.

        Raises Conflict if there are any, unless confirmed.
        """
        names = Replica.objects.live_only_on(self)
        require_confirmed(str(self), names, confirm=confirm)
        return names

    def _lock(self) -> None:
        """Lock the cluster's replicas, so that two drains at once do not each leave the version to the other."""
        list(Replica.objects.select_for_update().filter(cluster=self.cluster).order_by("pk"))
        self.refresh_from_db()

    def keep(self, *fields: str) -> None:
        """Save the fields of these names, unless the replica was deleted or has another address meanwhile."""
        values = {name: getattr(self, name) for name in fields}
        Replica.objects.filter(pk=self.pk, url=self.url).update(**values)

    @staticmethod
    def keep_all(replicas: Iterable[Replica], field: Literal["loaded", "pushed"]) -> None:
        """Save this field of many replicas in one statement.

        Those that were deleted or have another address meanwhile are left as they are.
        """
        rows = [{"id": each.pk, "url": each.url, "value": getattr(each, field)} for each in replicas]
        with connection.cursor() as cursor:
            cursor.execute(STORE[field], [json.dumps(rows)])

    def is_engine_of(self, other: Replica) -> None:
        """Store that this replica is the same engine as the older replica `other`, as a marker adapter showed.

        It holds until one of them gets another address.
        """
        self.twin_of = other
        self.keep("twin_of")

    def missed(self, message: str) -> None:
        """Mark the replica unhealthy and without loaded versions, because it did not answer; `message` is the reason.

        It gets no requests until it answers.
        """
        self._now(is_healthy=False, loaded={}, message=message)

    @property
    def is_usable(self) -> bool:
        """True if the replica may get requests: it answers and is not drained."""
        return self.is_healthy and self.draining_since is None

    @property
    def is_resting(self) -> bool:
        """True while the replica rests after it became unreachable several times in short order.

        A resting replica holds versions, but gets traffic only if no other can.
        """
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
            self.keep(*changed, "seen_at")
