"""Consequences of what replicas hold: rollouts start or fail, and moves to a version that all refuse are undone."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from django.conf import settings
from django.utils.timezone import now

from adapterhub.core.actor import system
from adapterhub.core.counts import counted
from adapterhub.core.errors import Conflict, DomainError, NotAllowed
from registry.models import Cluster, Replica, Rollout, RolloutStatus

RECONCILER = system("reconciler")
log = logging.getLogger(__name__)


def start_loaded_rollouts(cluster: Cluster, placed: Mapping[int, Mapping[str, object]]) -> None:
    """Start the cluster's loading rollouts whose candidate all its replicas hold, and fail those that cannot start.

    A rollout fails if a replica refused its candidate, or if LOAD_DEADLINE has passed. `placed` has the versions that
    each replica, by its key, should hold; only the replicas that should hold the candidate, or refused it, count, or
    all usable ones if there are none. A rollout that was changed meanwhile, or may not start, is left as it is, with a
    line in the log.
    """
    healthy = list(cluster.replicas.all().usable())
    loading = Rollout.objects.filter(alias__cluster=cluster, status=RolloutStatus.LOADING)
    for rollout in loading.select_related("alias", "candidate"):
        try:
            name = rollout.candidate.served_name
            chosen = [each for each in healthy if name in placed.get(each.pk, ()) or name in each.refused]
            start_or_fail(rollout, chosen or healthy)
        except (Conflict, NotAllowed) as error:
            log.info("%s does not start: %s", rollout, error)


def start_or_fail(rollout: Rollout, healthy: list[Replica]) -> None:
    """Start the rollout if all replicas hold its candidate; fail it on a refusal or after LOAD_DEADLINE; else leave it.

    `healthy` are the replicas that should load the candidate. A rollout whose share is not signed goes on loading, too.
    Raises Conflict if the rollout was changed since it was read, and NotAllowed if the signatures do not permit its
    share.
    """
    name = rollout.candidate.served_name
    lacking = [replica for replica in healthy if name not in replica.loaded]
    if healthy and not lacking:
        if not rollout.waits_for_signature:
            rollout.started(by=RECONCILER)
    elif refusals := [f"{replica}: {replica.refused[name]}" for replica in lacking if name in replica.refused]:
        summary = f"{len(refusals)} of {counted(len(healthy), 'replica')} refused it."
        rollout.refused(by=RECONCILER, reason=" ".join([summary, *refusals]))
    elif now() - (rollout.opened_at or rollout.created_at) > settings.LOAD_DEADLINE:
        rollout.refused(by=RECONCILER, reason=f"{missing(lacking)} within {settings.LOAD_DEADLINE}.")


def take_back_refused_moves(cluster: Cluster) -> None:
    """Move an alias back to its former version if every usable replica refuses the one that it was just moved to.

    Only a move within ROLLBACK_WINDOW to a version that is new to the alias is undone, and not to a version that is
    refused as well.
    """
    refused = [replica.refused for replica in cluster.replicas.all().usable()]
    by_all = set.intersection(*map(set, refused)) if refused else set()
    for alias in cluster.aliases.filter(version__served_name__in=by_all).select_related("version"):
        former = alias.served_before_a_new_version(now() - settings.ROLLBACK_WINDOW)
        if former and former.served_name not in by_all:
            reason = f"Every replica refused {alias.version}: {refused[0][alias.version.served_name]}"
            try:
                alias.move(former, expected=alias.version, reason=reason, by=RECONCILER)
            except DomainError as error:
                log.info("%s stays at %s, which no replica takes: %s", alias, alias.version, error)


def missing(lacking: list[Replica]) -> str:
    """Return a phrase that says what keeps the rollout from starting.

    It names the replicas that lack the candidate, or says that no replica answered.
    """
    return f"{', '.join(map(str, lacking))} did not load it" if lacking else "No replica answered"
