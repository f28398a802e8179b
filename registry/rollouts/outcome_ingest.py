"""Ingestion of the routers' outcome reports: each becomes a row that links a response to its version."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import cast

import redis
from django.db import DataError, connection, transaction

from adapterhub.accounts.models import Project
from registry.experiments.metrics import of_report
from registry.models import AdapterVersion, Response, Rollout, RolloutUnit, UsageDay
from registry.models.rollout_measurement import Measured
from registry.serving.valkey import valkey
from serving_client.protocol import OUTCOMES, REPORTS
from serving_client.reports import MeasuredAnswer, Outcome

GROUP = "registry"
# Entries a read; each entry has up to 50 reports.
BATCH = 20
log = logging.getLogger(__name__)
ARMS = ("candidate", "control", "shadow")


def collect() -> int:
    """Read the waiting reports from Valkey, store them, acknowledge them, and return how many were read.

    A report that is read twice changes nothing. Those that are repeated or cannot be stored count, too.
    """
    count = 0
    with valkey() as client:
        ensure_group(client)
        for start in ("0", ">"):
            while entries := read(client, start):
                contents = [fields[REPORTS.encode()] for _, fields in entries]
                reports = [report for content in contents for report in readable(content)]
                keep_all(reports)
                client.xack(OUTCOMES, GROUP, *(entry_id for entry_id, _ in entries))
                count += len(reports)
    return count


def ensure_group(client: redis.Redis) -> None:
    """Create the stream's consumer group unless it exists."""
    try:
        client.xgroup_create(OUTCOMES, GROUP, id="0", mkstream=True)
    except redis.ResponseError as error:
        if "BUSYGROUP" not in str(error):
            raise


def read(client: redis.Redis, start: str) -> list[tuple[bytes, dict[bytes, bytes]]]:
    """Read up to BATCH entries: those that a former reader left unacknowledged (`start` "0"), or new ones (">")."""
    # redis-py's types cover every release of the protocol; ours answers with a list of (stream, entries).
    streams = cast(
        list[tuple[bytes, list[tuple[bytes, dict[bytes, bytes]]]]],
        client.xreadgroup(GROUP, "worker", {OUTCOMES: start}, count=BATCH),
    )
    return streams[0][1] if streams else []


def readable(content: bytes) -> list[Outcome]:
    """Return the reports of a stream entry; none, with a line in the log, if it cannot be read."""
    try:
        return Outcome.all_from_json(content)
    except ValueError as error:
        log.error("A report of a router cannot be read, and is dropped: %s", error)
        return []


def keep_all(reports: list[Outcome]) -> None:
    """Store the reports; one that Postgres cannot hold is dropped, with a line in the log, and holds up no other.

    It would come back with every reading, and no project's answers would ever be counted again.
    """
    try:
        keep(reports)
    except DataError as error:
        if len(reports) == 1:
            log.error("The report of %s cannot be stored, and is dropped: %s", reports[0].response_id[:80], error)
            return
        for report in reports:
            keep_all([report])


def keep(reports: list[Outcome]) -> None:
    """Store the new answers, and add them to the daily usage and their rollouts' minutes, in one transaction.

    A report of an unknown version or project is dropped.
    """
    versions = AdapterVersion.objects.in_bulk({report.version for report in reports}, field_name="served_name")
    projects = {project.slug: project for project in Project.objects.all()}
    with transaction.atomic(), connection.cursor() as cursor:
        # Without the lock, two collectors could both take a report for new and count it twice.
        cursor.execute("SELECT pg_advisory_xact_lock(hashtext('adapterhub.outcomes'))")
        known = [report for report in new_ones(reports) if report.version in versions]
        rollouts = Rollout.objects.by_alias({report.alias for report in known})
        rows = [
            response_row(report, projects[report.project], versions[report.version], rollouts)
            for report in known
            if report.project in projects
        ]
        by_id = {report.response_id: report for report in known}
        users = rollout_users(rows, by_id)
        for row in rows:
            row.unit = users.get(row.pk)
        Response.objects.bulk_create(rows)
        UsageDay.add(rows, {report.response_id for report in known if report.cold})
        measure(rows, by_id)


def new_ones(reports: list[Outcome]) -> list[Outcome]:
    """Return the reports that have no row yet, each response once."""
    once = {report.response_id: report for report in reports}
    there = set(Response.objects.filter(pk__in=once).values_list("pk", flat=True))
    return [report for key, report in once.items() if key not in there]


def response_row(
    report: Outcome, project: Project, version: AdapterVersion, rollouts: dict[tuple[int, str], list[Rollout]]
) -> Response:
    """Return the unsaved row of a reported answer, with the rollout that was open for its alias at that time.

    `rollouts` maps (project's primary key, alias name) to rollouts. The row's rollout is None if none was open.
    """
    at = datetime.fromtimestamp(report.at, UTC)
    return Response(
        id=report.response_id,
        project=project,
        alias_name=report.alias or "",
        version=version,
        rollout=at_that_time(rollouts.get((project.pk, report.alias or ""), []), at),
        arm=report.arm,
        is_sticky=report.sticky,
        status=report.status,
        at=at,
        ttft_ms=report.ttft_ms,
        total_ms=report.total_ms,
        prompt_tokens=report.prompt_tokens,
        completion_tokens=report.completion_tokens,
    )


def at_that_time(rollouts: list[Rollout], at: datetime) -> Rollout | None:
    """Return the first of the rollouts that was open at that time; None if none was."""
    return next((rollout for rollout in rollouts if rollout.was_open(at)), None)


def rollout_users(rows: list[Response], reports: dict[str, Outcome]) -> dict[str, RolloutUnit]:
    """Map response ids to the locked row of the user for whom the rollout counts the answer; new users are inserted.

    Answers that the rollout does not count are left out.
    """
    users = {
        row.pk: RolloutUnit(rollout=row.rollout, unit=str(reports[row.pk].unit), arm=row.arm, weight=row.rollout.weight)
        for row in rows
        if row.rollout and is_counted(row, reports[row.pk])
    }
    there = RolloutUnit.locked(users.values())
    return {pk: there[user.key] for pk, user in users.items()}


def is_counted(row: Response, report: Outcome) -> bool:
    """Return True for an answer of a rollout's arm to a known, sticky user.

    False for users that a targeting list or the holdout takes out of the statistics.
    """
    return row.arm in ARMS and row.is_sticky and bool(report.unit) and report.counted


def measure(rows: list[Response], reports: dict[str, Outcome]) -> None:
    """Add the measurements of counted users' answers to their minutes; only a user's first value of a metric counts."""
    measurements = [
        (row.unit, value)
        for row in rows
        if row.unit
        for value in (pair if row.arm == "shadow" else alone)(row, reports[row.pk])
    ]
    RolloutUnit.count_first(measurements)


def alone(row: Response, report: Outcome) -> Iterator[Measured]:
    """Yield the measurements of an answer that is not compared with another one."""
    yield from values(row, row.arm, report)


def values(row: Response, arm: str, report: MeasuredAnswer) -> Iterator[Measured]:
    """Yield the measurements of a report, attributed to the arm; none for an answer without a rollout."""
    if row.rollout:
        for metric, value in of_report(report).items():
            yield row.rollout, arm, row.at, metric, value


def pair(row: Response, report: Outcome) -> Iterator[Measured]:
    """Yield the measurements of the candidate's unseen answer and of the stable version's answer to the same request.

    The stable version's answer never counts as differing, because the other is compared with it.
    """
    yield from values(row, "shadow", report)
    if report.mirrored:
        yield from values(row, "mirrored", replace(report.mirrored, differs=False))
