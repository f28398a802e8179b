"""Reconciliation of all clusters side by side, each in its own thread, so that none waits for another's replicas."""

from __future__ import annotations

import logging
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait

from django.db import connection

from registry.models import Cluster
from registry.serving.desired_versions import waiting_versions
from registry.serving.reconciler import reconcile_alone

# A round of a cluster that takes longer goes on in its thread, and the others are not kept waiting for it.
PATIENCE_S = 1.0
# Clusters that hang at the same time.
THREADS = 64
# Rounds that follow one another without a pause end then: the next one is beat's.
AWAITED_S = 60.0
log = logging.getLogger(__name__)


class ClusterThreads:
    """A thread for each cluster that is being reconciled; no cluster is reconciled twice at the same time."""

    def __init__(self) -> None:
        self._threads: ThreadPoolExecutor | None = None
        self._rounds: dict[int, Future[None]] = {}

    def reconcile(self) -> None:
        """Start a round for every cluster without one in progress, and wait up to PATIENCE_S seconds for all rounds.

        A round that takes longer goes on in its thread. Errors of rounds are logged, not raised. Locks in Postgres keep
        other processes from reconciling the same cluster.
        """
        # Made on the first call, as a pool's threads do not survive the fork of a worker.
        self._threads = self._threads or ThreadPoolExecutor(THREADS, thread_name_prefix="cluster")
        self._rounds = {pk: ended for pk, ended in self._rounds.items() if not ended.done()}
        for cluster in Cluster.objects.select_related("base_model", "project"):
            if cluster.pk not in self._rounds:
                self._rounds[cluster.pk] = self._threads.submit(reconcile_in_thread, cluster)
        wait(self._rounds.values(), PATIENCE_S)

    def close(self) -> None:
        """Wait for the rounds that have been started, and end the threads."""
        if self._threads:
            self._threads.shutdown()
        self._threads, self._rounds = None, {}


def reconcile_in_thread(cluster: Cluster) -> None:
    """Reconcile the cluster over its own database connection, once, and again while requests wait for a version.

    An error is logged and ends only this round.
    """
    try:
        reconcile_while_awaited(cluster)
    except Exception:
        log.exception("The round of %s failed; the next one begins anew.", cluster.ref)
    finally:
        # The next round may come to another thread of the pool.
        connection.close()


def reconcile_while_awaited(cluster: Cluster) -> None:
    """Reconcile the cluster, and begin the next round at once while requests wait for versions that it lacks.

    Where more versions are in use than there are slots, each round makes room for those that wait longest. A round
    after which the same requests wait, or that comes later than AWAITED_S seconds, is the last one.
    """
    until, before = time.monotonic() + AWAITED_S, list[str]()
    known: Cluster | None = cluster
    while known and reconcile_alone(known) and time.monotonic() < until:
        awaited = waiting_versions(known)
        if not awaited or awaited == before:
            break
        before = awaited
        known = Cluster.objects.select_related("base_model", "project").filter(pk=cluster.pk).first()


resident = ClusterThreads()
