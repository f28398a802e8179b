"""Discovery of replicas: each cluster's source is asked or followed, and its members are kept as the source says."""

from __future__ import annotations

import logging
import threading
from functools import cache
from pathlib import Path

import redis
from django.conf import settings
from django.db.models import QuerySet
from django.utils.timezone import now

from registry.models import Cluster
from registry.replica_sources.address import Kind, Source, parse
from registry.replica_sources.dns_records import Dns, LookupFailed
from registry.replica_sources.endpoint_slices import Gone, Kubernetes, SliceFollower, endpoints_of
from registry.serving.membership import update_members
from registry.serving.session_lock import session_lock
from registry.serving.valkey import valkey
from serving_client.protocol import DISCOVERING

# Rounds that a process `manage.py discover` may miss before a task of beat discovers again.
MISSED_ROUNDS = 6
LOCK = "adapterhub.discovery"
log = logging.getLogger(__name__)


class Discovery:
    """Discovery of the replicas of all clusters that have a source.

    A source of Kubernetes is followed by a thread of its own or, with `follows` False, listed anew in each update. DNS
    is asked anew in each update.
    """

    def __init__(self, *, follows: bool = True) -> None:
        self._follows = follows
        self._dns = Dns(settings.DNS_SERVERS)
        self._api = Kubernetes(settings.KUBERNETES_URL, Path(settings.KUBERNETES_ACCOUNT))
        self._followers: dict[str, SliceFollower] = {}
        self._changed = threading.Event()

    def wait(self, seconds: float) -> None:
        """Wait until the follower of a Kubernetes source reports a change or a failure, at most `seconds`.

        A report since the last wait ends it at once. DNS sources are not followed.
        """
        self._changed.wait(seconds)
        self._changed.clear()

    def close(self) -> None:
        """Stop following all sources."""
        for follower in self._followers.values():
            follower.close()

    def update(self) -> None:
        """Make the replicas of every cluster with a source those that it names, once; store the time and any hindrance.

        The hindrance is the cluster's `discovery_message`, "" for none. A source that does not answer changes nothing
        else and is logged. Sources that no cluster has any more are no longer followed. While another process updates
        them, nothing is done.
        """
        clusters = list(with_source())
        with session_lock(LOCK) as has_lock:
            if has_lock:
                self._update(clusters)

    def _update(self, clusters: list[Cluster]) -> None:
        for gone in self._followers.keys() - {cluster.discovery for cluster in clusters}:
            self._followers.pop(gone).close()
        for cluster in clusters:
            try:
                members, may_be_empty = self._members(cluster.discovery)
                message = update_members(cluster, members, may_be_empty=may_be_empty)
                Cluster.objects.filter(pk=cluster.pk).update(discovered_at=now(), discovery_message=message)
            except LookupFailed as error:
                Cluster.objects.filter(pk=cluster.pk).update(discovery_message=str(error))
                log.warning("%s: %s", cluster.ref, error)

    def _members(self, address: str) -> tuple[dict[str, bool], bool]:
        """Return the URLs of a source, with whether each is leaving, and whether it may name nobody.

        An empty list of Kubernetes is its word; an empty answer of DNS is also what a mistake in a zone looks like.
        """
        source = parse(address)
        if source.kind is not Kind.KUBERNETES:
            return dict.fromkeys(self._dns.urls(source), False), False
        if not self._follows:
            return self._listed(source), True
        if address not in self._followers:
            self._followers[address] = SliceFollower(self._api, source, self._changed.set)
        return self._followers[address].endpoints(), True

    def _listed(self, source: Source) -> dict[str, bool]:
        try:
            slices, _ = self._api.list(source)
        except Gone:
            raise LookupFailed("Kubernetes forgot the list while it was read; it is read again.") from None
        return endpoints_of(slices.values(), source.port)


def note_resident() -> None:
    """Record in Valkey that a process `manage.py discover` runs, so that beat's task leaves the work to it.

    The record expires after MISSED_ROUNDS rounds, so it is made anew in each round. If Valkey does not answer, that is
    only logged.
    """
    try:
        valkey().set(DISCOVERING, 1, ex=MISSED_ROUNDS * settings.DISCOVERY_S)
    except redis.RedisError as error:
        log.warning("Valkey does not answer (%s): beat's task may discover, too.", error)


def update_unless_resident() -> None:
    """Make the replicas of clusters with a source follow it, once, unless a process `manage.py discover` does so.

    No effect if no cluster has a source. Raises RedisError if Valkey does not answer.
    """
    if with_source().exists() and not valkey().exists(DISCOVERING):
        single().update()


@cache
def single() -> Discovery:
    """Return this process' only Discovery, which follows nothing and lists Kubernetes anew in each update."""
    return Discovery(follows=False)


def with_source() -> QuerySet[Cluster]:
    """Return the clusters that have a source of replicas."""
    return Cluster.objects.exclude(discovery="").select_related("project", "base_model").order_by("pk")
