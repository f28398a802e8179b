"""Celery tasks of the registry; each one only calls the code that does the work."""

import logging

import redis
from celery import shared_task
from django.conf import settings
from kombu.exceptions import OperationalError

from adapterhub.core.unpublished_changes import note_unpublished
from adapterhub.jobs import task_times
from registry.base_models import check as base_model_check
from registry.evidence import served_comparison
from registry.models import AdapterVersion, BaseModel, Response, StagedFile, VersionStatus
from registry.rollouts import controller, judge_queue, outcome_ingest
from registry.serving import discovery
from registry.serving import routing_table as publishing
from registry.serving.cluster_threads import resident
from registry.serving.coalescing import CoalescedRun, StillRunning
from registry.uploads import staging, verification

log = logging.getLogger(__name__)
# Shared by all threads of the process: a table read after a caller's commit holds that change, whoever publishes it.
publication = CoalescedRun(lambda: publishing.publish())
changed: set[int] = set()
changes = CoalescedRun(lambda: tell_changes())


@shared_task
def reconcile() -> None:
    """Bring every cluster's replicas to the versions that its aliases and rollouts need."""
    resident.reconcile()


@shared_task
def discover() -> None:
    """Update the replicas of clusters with a source, unless a process `manage.py discover` does that."""
    discovery.update_unless_resident()


@shared_task
def collect_outcomes() -> None:
    """Store the answers that routers have reported."""
    outcome_ingest.collect()


@shared_task
def keep_responses() -> None:
    """Make the coming months' partitions of responses, and drop those that are past their retention."""
    if dropped := Response.keep_for(settings.RESPONSE_DAYS):
        log.warning("Responses of %d months were older than %d days: dropped.", dropped, settings.RESPONSE_DAYS)


@shared_task
def look_at_rollouts() -> None:
    """Judge every serving rollout that has guardrails, and carry out the action that follows."""
    controller.judge_all()


@shared_task
def judge_samples() -> None:
    """Have the judge score the sampled answers."""
    judge_queue.judge_waiting()


@shared_task
def check_base_model(pk: int) -> None:
    """Fetch and inspect the registered base model with this primary key."""
    base_model_check.check(pk)


@shared_task
def check_base_models() -> None:
    """Queue again the checks of base models whose message or worker was lost.

    Nothing is queued while the queue `download` holds messages, which will be delivered.
    """
    waiting = list(BaseModel.objects.waiting().values_list("pk", flat=True))
    # Messages that wait there will be delivered.
    if waiting and task_times.is_empty("download"):
        for pk in waiting:
            check_base_model.delay(pk)


def check_base_model_soon(pk: int) -> None:
    """Queue the check of a base model; call it after the commit.

    If Valkey is down, a later `check_base_models` queues it.
    """
    try:
        check_base_model.delay(pk)
    except OperationalError as error:
        log.warning("Valkey does not answer (%s): the base model is checked later.", error)


@shared_task
def check_version(pk: int) -> None:
    """Check the files of an uploaded version that waits for its check; nothing happens to any other."""
    version = AdapterVersion.objects.filter(pk=pk, status=VersionStatus.CHECKING).first()
    if version:
        verification.check(version)


@shared_task
def check_versions() -> None:
    """Check, one after another, the versions that are still `checking` a minute after they were published.

    So a check is made even if the task message or the worker was lost. One that is in progress is repeated.
    """
    for pk in AdapterVersion.objects.waiting_long().values_list("pk", flat=True):
        check_version(pk)


@shared_task
def drop_staged_files() -> None:
    """Drop uploaded files of which nothing has arrived for a day and from which no version was made."""
    staging.drop(StagedFile.objects.expired())


@shared_task
def compare_served() -> None:
    """Compare one version that was not compared yet, as an engine computes it, with what PEFT computes."""
    served_comparison.compare_next()


def check_version_soon(pk: int) -> None:
    """Queue the check of a version; call it after the commit.

    If Valkey is down, a later `check_versions` makes it.
    """
    try:
        check_version.delay(pk)
    except OperationalError as error:
        log.warning("Valkey does not answer (%s): the version is checked later.", error)


def publish_soon() -> None:
    """Publish the routing table now; call it after the commit.

    If Valkey does not answer in time, the control loop publishes it later, and the response to the request says so.
    """
    try:
        publication.join()
    except (redis.RedisError, StillRunning) as error:
        published_later(error)


def publish_and_reconcile() -> None:
    """Publish the routing table and queue a run of the control loop; call it after the commit.

    If Valkey does not answer in time, the control loop does both later, and the response to the request says so.
    """
    try:
        publication.join()
    except (redis.RedisError, StillRunning) as error:
        published_later(error)
    else:
        reconcile_soon()


def route_and_reconcile(alias: int) -> None:
    """Publish the alias' route and queue a run of the control loop; call it after the commit.

    If Valkey does not answer in time, the control loop does both later, and the response to the request says so.
    """
    changed.add(alias)
    try:
        changes.join()
    except (redis.RedisError, StillRunning) as error:
        published_later(error)
    else:
        reconcile_soon()


def reconcile_soon() -> None:
    """Queue a run of the control loop; if Valkey is down, its next periodic run does the work."""
    try:
        reconcile.delay()
    except OperationalError as error:
        log.warning("Valkey does not answer (%s): the control loop starts later.", error)


def published_later(error: Exception) -> None:
    """Log that a committed change is not published yet, and have the response to the request say so."""
    log.warning("Valkey does not answer (%s): the control loop will publish the change.", error)
    note_unpublished()


def tell_changes() -> None:
    """Publish the routes of all aliases that changed since the previous call.

    If Valkey is down, the aliases are kept for the next call and RedisError is raised.
    """
    aliases = set()
    while changed:
        aliases.add(changed.pop())
    try:
        if aliases:
            publishing.publish_changes(aliases)
    except redis.RedisError:
        changed.update(aliases)
        raise
