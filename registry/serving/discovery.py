"""Discovery of replicas: each cluster's source is asked or followed, and its members are kept as the source says."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

from django.conf import settings
from django.db.models import QuerySet
from django.utils.timezone import now

from registry.models import Cluster
from registry.replica_sources.address import Kind, parse
from registry.replica_sources.dns_records import Dns, LookupFailed
from registry.replica_sources.endpoint_slices import Kubernetes, SliceFollower
from registry.serving.membership import update_members

log = logging.getLogger(__name__)


class Discovery:
    """The sources of all clusters that have one."""

    def __init__(self) -> None:
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
        """Update the members of every cluster that has a source once, and store the time and what stands in the way.

        A source that does not answer changes nothing but the stored message. Sources that no cluster has any more are
        no longer followed.
        """
        clusters = list(with_source())
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
        if address not in self._followers:
            self._followers[address] = SliceFollower(self._api, source, self._changed.set)
        return self._followers[address].endpoints(), True


def with_source() -> QuerySet[Cluster]:
    """Return the clusters that have a source of replicas."""
    return Cluster.objects.exclude(discovery="").select_related("project", "base_model").order_by("pk")
