"""Answers are kept in partitions by month, for at least 180 days; a migration keeps those from before."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from django.core.management import call_command
from django.db import IntegrityError, connection, connections, transaction
from django.utils.timezone import now

from adapterhub.audit.models import AuditEvent
from adapterhub.environment import BadSetting, integer
from registry.models import Alias, Feedback, Response
from registry.tasks import keep_responses


def answer(alias: Alias, pk: str, at: datetime) -> Response:
    of = {"project": alias.project, "alias_name": alias.name, "version": alias.version, "arm": "none"}
    row: Response = Response.objects.create(id=pk, at=at, is_sticky=True, status=200, total_ms=20.0, **of)
    return row


def partition_of(pk: str) -> str:
    with connection.cursor() as cursor:
        cursor.execute("SELECT tableoid::regclass::text FROM registry_response WHERE id = %s", [pk])
        return str(cursor.fetchone()[0])


def owner(statement: str) -> None:
    with connections["owner"].cursor() as cursor:
        cursor.execute(statement)


@transaction.atomic
def executed(statement: str) -> None:
    """Execute the statement and check at once what is else checked at the commit."""
    with connection.cursor() as cursor:
        cursor.execute(statement)
        cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")


def month_of(moment: datetime) -> datetime:
    return moment.astimezone(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)


def month_after(moment: datetime) -> datetime:
    return month_of(month_of(moment) + timedelta(days=32))


def test_months_are_made_ahead_and_dropped_when_all_of_them_is_past(fresh_database: str, alias: Alias) -> None:
    Response.keep_for(36_500)
    past = month_of(now() - timedelta(days=250))
    owner(
        f"CREATE TABLE registry_response_past PARTITION OF registry_response "
        f"FOR VALUES FROM ('{past.isoformat()}') TO ('{month_after(past).isoformat()}')"
    )
    for pk, at in (("past", past), ("strayed", now() - timedelta(days=190)), ("recent", now())):
        Feedback.give(answer(alias, pk, at), score=1.0)
    ahead = month_after(month_after(now()))
    answer(alias, "ahead", ahead)
    answer(alias, "too far", ahead + timedelta(days=40))
    assert partition_of("past") == "registry_response_past"
    assert partition_of("recent") == f"registry_response_{month_of(now()):%Y_%m}"
    assert partition_of("ahead") == f"registry_response_{ahead:%Y_%m}"
    assert {partition_of(pk) for pk in ("strayed", "too far")} == {"registry_response_default"}
    assert Response.keep_for(400) == 0
    assert Response.objects.count() == 5
    assert not AuditEvent.objects.filter(tag="project:responses_dropped").exists()
    assert Response.keep_for(180) == 1
    (event,) = AuditEvent.objects.filter(tag="project:responses_dropped")
    assert (event.project, event.actor_name, event.reason) == (
        alias.project,
        "system:retention",
        "Answers are kept for 180 days.",
    )
    assert (event.before["answers"], event.before["from"][:10]) == (2, f"{past:%Y-%m-%d}")
    assert set(Response.objects.values_list("pk", flat=True)) == {"recent", "ahead", "too far"}
    assert list(Feedback.objects.values_list("response", flat=True)) == ["recent"]
    keep_responses()
    assert Response.keep_for(180) == 0
    assert AuditEvent.objects.filter(tag="project:responses_dropped").count() == 1


def test_fewer_than_180_days_are_refused_by_setting_and_database(alias: Alias) -> None:
    with pytest.raises(BadSetting, match="ADAPTERHUB_RESPONSE_DAYS='179' is not a whole number from 180"):
        integer("ADAPTERHUB_RESPONSE_DAYS", {"ADAPTERHUB_RESPONSE_DAYS": "179"}, least=180)
    for days in (179, 0, -1, None):
        with pytest.raises(IntegrityError, match="at least 180 days"), transaction.atomic():
            Response.keep_for(days)  # type: ignore[arg-type]


def test_feedback_belongs_to_an_answer_that_is_there(alias: Alias) -> None:
    row = answer(alias, "r1", now())
    with pytest.raises(IntegrityError), transaction.atomic():
        Feedback.objects.create(response_id="nowhere", score=1.0)
    Feedback.give(row, score=1.0)
    with pytest.raises(IntegrityError):
        executed("DELETE FROM registry_response WHERE id = 'r1'")
    with connection.cursor() as cursor:
        cursor.execute("SELECT response_at FROM registry_feedback")
        assert cursor.fetchone() == (row.at,)
    with pytest.raises(IntegrityError), transaction.atomic():
        answer(alias, "r1", row.at)


def test_an_answer_belongs_to_a_project_that_is_there(alias: Alias) -> None:
    answer(alias, "r1", now())
    with pytest.raises(IntegrityError):
        executed("UPDATE registry_response SET project_id = 0")


@pytest.mark.slow
def test_the_migration_keeps_answers_and_feedback_both_ways(fresh_database: str, alias: Alias) -> None:
    days = {"old": 300, "recent": 0, "early": -100}
    for pk, ago in days.items():
        Feedback.give(answer(alias, pk, now() - timedelta(days=ago)), outcome="good")
    before = [list(model.objects.order_by("pk").values()) for model in (Response, Feedback)]
    connections.close_all()
    call_command("migrate", "registry", "0035", verbosity=0, skip_checks=True)
    assert [list(model.objects.order_by("pk").values()) for model in (Response, Feedback)] == before
    call_command("migrate", "registry", verbosity=0, skip_checks=True)
    assert [list(model.objects.order_by("pk").values()) for model in (Response, Feedback)] == before
    assert partition_of("old") == partition_of("recent") == "registry_response_before"
    assert partition_of("early") == "registry_response_default"
    Response.keep_for(180)
    assert Response.objects.count() == 3, "its youngest answers keep the month"
