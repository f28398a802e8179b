"""Answers with the versions that gave them, one row for each, and the usage per day, from the routers' reports."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date

from django.db import connection, models, transaction

from adapterhub.accounts.models import Project
from adapterhub.audit.models import AuditEvent
from adapterhub.audit.tags import Tag
from adapterhub.core.actor import system
from adapterhub.core.counts import counted
from registry.models.adapter import AdapterVersion
from registry.models.rollout import Rollout
from registry.models.rollout_measurement import RolloutUnit

# The answers of each project that registry_keep_responses would drop now: those of partitions that end before the
# retention begins, and old ones that no partition of a month had taken. The first condition on the time leaves the
# younger partitions unread.
GOING = """
WITH bounds AS (SELECT now() - make_interval(days => %(days)s) AS oldest),
ended AS (
    SELECT inhrelid FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid, bounds
    WHERE inhparent = 'registry_response'::regclass
        AND substring(pg_get_expr(relpartbound, pg_class.oid) FROM 'TO \\(''([^'']+)''\\)')::timestamptz <= oldest
),
going AS (
    SELECT project_id, at FROM registry_response
    WHERE at < date_trunc('month', now() - make_interval(days => %(days)s), 'UTC')
        AND tableoid IN (SELECT inhrelid FROM ended)
    UNION ALL
    SELECT project_id, at FROM registry_response_default, bounds WHERE at < oldest
)
SELECT project_id, count(*), min(at), max(at) FROM going GROUP BY project_id ORDER BY project_id
"""
RETENTION = system("retention")


class Response(models.Model):
    """An answer that a router sent: version, arm, times and numbers of tokens. The texts are not stored.

    The table is in partitions by month of `at`, which is a part of its key in the database.
    """

    id = models.CharField(primary_key=True, max_length=64)
    project = models.ForeignKey(Project, models.PROTECT, related_name="+")
    alias_name = models.CharField(max_length=50, blank=True)
    version = models.ForeignKey(AdapterVersion, models.PROTECT, related_name="responses")
    rollout = models.ForeignKey(Rollout, models.PROTECT, null=True, related_name="responses")
    unit = models.ForeignKey(
        RolloutUnit,
        models.PROTECT,
        null=True,
        db_index=False,
        related_name="+",
        help_text="The user, as a hash, whom the rollout counts it for.",
    )
    arm = models.CharField(max_length=20)
    is_sticky = models.BooleanField()
    status = models.PositiveSmallIntegerField()
    at = models.DateTimeField()
    ttft_ms = models.FloatField(null=True)
    total_ms = models.FloatField()
    prompt_tokens = models.PositiveIntegerField(default=0)
    completion_tokens = models.PositiveIntegerField(default=0)

    class Meta:
        ordering = ["-at"]
        indexes = [models.Index(fields=["version", "at"], name="responses_by_version")]

    def __str__(self) -> str:
        return self.id

    @classmethod
    def keep_for(cls, days: int) -> int:
        """Make the partitions of this and the next two months, and drop those whose answers are all older than `days`.

        Feedback goes with its answer. The audit trail of each project records how many of its answers were dropped, and
        from when they were. Returns the number of dropped partitions. Raises IntegrityError below 180 days, and
        OperationalError if the table is in use for so long that routers' reports would have to wait.
        """
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("SET LOCAL lock_timeout = '10s'")
            cursor.execute(GOING, {"days": days})
            going = cursor.fetchall()
            cursor.execute("SELECT registry_keep_responses(%s)", [days])
            dropped = int(cursor.fetchone()[0])
            projects = Project.objects.in_bulk([pk for pk, *_ in going])
            for pk, count, first, last in going:
                facts = {"answers": count, "from": first.isoformat(), "until": last.isoformat()}
                project, rule = projects[pk], f"Answers are kept for {counted(days, 'day')}."
                AuditEvent.record(
                    Tag.RESPONSES_DROPPED, project, by=RETENTION, project=project, before=facts, reason=rule
                )
        return dropped

    @property
    def alias_ref(self) -> str:
        """The alias' name among all projects: `project.name`."""
        return f"{self.project.slug}.{self.alias_name}"


# Adds to the day's row, or makes it.
ADD = """
INSERT INTO registry_usageday
    (project_id, alias_name, version_id, day, requests, failures, cold_loads, prompt_tokens, completion_tokens)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)
ON CONFLICT ON CONSTRAINT one_row_of_usage_a_day DO UPDATE SET
    requests = registry_usageday.requests + EXCLUDED.requests,
    failures = registry_usageday.failures + EXCLUDED.failures,
    cold_loads = registry_usageday.cold_loads + EXCLUDED.cold_loads,
    prompt_tokens = registry_usageday.prompt_tokens + EXCLUDED.prompt_tokens,
    completion_tokens = registry_usageday.completion_tokens + EXCLUDED.completion_tokens
"""


class UsageDay(models.Model):
    """The requests and tokens of a project for one version behind one alias on one day (UTC), kept for ever."""

    project = models.ForeignKey(Project, models.PROTECT, related_name="+")
    alias_name = models.CharField(max_length=50, blank=True)
    version = models.ForeignKey(AdapterVersion, models.PROTECT, related_name="+")
    day = models.DateField()
    requests = models.PositiveBigIntegerField(default=0)
    failures = models.PositiveBigIntegerField(default=0, help_text="Of the requests, those that ended with an error.")
    cold_loads = models.PositiveBigIntegerField(default=0, help_text="Requests that waited for a load.")
    prompt_tokens = models.PositiveBigIntegerField(default=0)
    completion_tokens = models.PositiveBigIntegerField(default=0)

    class Meta:
        ordering = ["-day", "alias_name", "version"]
        constraints = [
            models.UniqueConstraint(fields=["project", "alias_name", "version", "day"], name="one_row_of_usage_a_day")
        ]

    def __str__(self) -> str:
        return f"{self.project} on {self.day}"

    @classmethod
    def add(cls, answers: Iterable[Response], cold: set[str]) -> None:
        """Add new answers to the sums of their days; `cold` holds the ids of answers that waited for a load.

        An answer of a shadow, which no caller saw, counts too, because the engine computed it.
        """
        sums: dict[tuple[int, str, int, date], list[int]] = {}
        for answer in answers:
            key = (answer.project_id, answer.alias_name, answer.version_id, answer.at.date())
            counts = (1, answer.status >= 400, answer.pk in cold, answer.prompt_tokens, answer.completion_tokens)
            sums[key] = [total + count for total, count in zip(sums.get(key, [0] * 5), counts, strict=True)]
        with connection.cursor() as cursor:
            # In one order everywhere, so that two writers never wait for each other.
            cursor.executemany(ADD, [(*key, *counts) for key, counts in sorted(sums.items())])
