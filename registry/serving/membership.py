"""Membership of a cluster with a source of replicas: who is found joins, who is going is drained, who is gone goes."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

from django.utils.timezone import now

from adapterhub.core.actor import system
from adapterhub.core.errors import DomainError
from registry.models import Cluster, Replica

DISCOVERY = system("discovery")
# A replica that is gone keeps its row this long, while the answers that run there may end.
LAST_ANSWERS = timedelta(seconds=60)


def update_members(cluster: Cluster, members: Mapping[str, bool], *, may_be_empty: bool = True) -> str:
    """Make the cluster's discovered replicas follow its source; return what stands in the way, "" if nothing does.

    `members` says of each URL whether it is leaving. A new URL is added; a replica that is leaving or no longer listed
    is drained, and a later call deletes it once it is not listed, as `leave` says. A URL that cannot be added does not
    hinder the others. Replicas that somebody added by hand stay as they are. Unless `may_be_empty`, a source that names
    nobody changes nothing while a replica that it named before answers.
    """
    ours = {replica.url: replica for replica in cluster.replicas.filter(is_discovered=True)}
    if not members and not may_be_empty and any(replica.is_healthy for replica in ours.values()):
        return "The source names no replica, but some that it named before answer: nothing was changed."
    others = set(cluster.replicas.filter(is_discovered=False).values_list("url", flat=True))
    staying = [url for url, leaving in members.items() if not leaving]
    troubles = [join(cluster, url, ours, others) for url in staying]
    for url, replica in ours.items():
        if members.get(url, True):
            leave(replica, is_listed=url in members)
    return "; ".join(filter(None, troubles))


def join(cluster: Cluster, url: str, ours: Mapping[str, Replica], others: set[str]) -> str:
    """Add the replica at the URL, or let one serve again that was thought gone.

    Return why it cannot be added, "" if it can. `ours` are the discovered replicas by URL, `others` the URLs of those
    that were added by hand, which stay as they are.
    """
    if url in others:
        return ""
    if replica := ours.get(url):
        if replica.gone_since:
            Replica.objects.filter(pk=replica.pk).update(gone_since=None)
            replica.resume(reason="Its source names it again.", by=DISCOVERY)
        return ""
    try:
        cluster.add_replica(url=url, by=DISCOVERY, is_discovered=True)
    except DomainError as error:
        return f"{url}: {error}"
    return ""


def leave(replica: Replica, *, is_listed: bool) -> None:
    """Drain a replica that is leaving or no longer listed; a later call deletes it once it is not listed.

    `is_listed` is True while its source still names it, as leaving. The replica is deleted when it no longer answers,
    or LAST_ANSWERS after its drain. Nobody can be asked whether it may go: what it alone holds is cut off, and the
    audit trail says so.
    """
    if replica.gone_since is None:
        replica.gone_since = now()
        replica.keep("gone_since")
        if replica.draining_since is None:
            why = "It is being terminated." if is_listed else "Its source no longer names it."
            replica.drain(reason=why, by=DISCOVERY, confirm=True)
    elif not is_listed and (not replica.is_healthy or now() - replica.gone_since > LAST_ANSWERS):
        replica.remove(reason="Its source no longer names it.", by=DISCOVERY, confirm=True)
