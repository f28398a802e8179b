"""What the server ends by itself: a transaction whose process was stopped, and a statement that takes too long."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from django.conf import settings
from django.db import connection, connections, transaction
from rest_framework.test import APIClient

from adapterhub.accounts.models import Project

ASLEEP = """
import adapterhub.asgi
from django.db import connection
with connection.cursor() as cursor:
    cursor.execute("SHOW statement_timeout")
    print(cursor.fetchone()[0], flush=True)
    cursor.execute("SELECT pg_sleep(60)")
"""


def test_the_application_s_connections_have_the_limit(db: None) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT setting::int FROM pg_settings WHERE name = 'idle_in_transaction_session_timeout'")
        assert cursor.fetchone()[0] == settings.IDLE_IN_TRANSACTION_S * 1000


@pytest.mark.slow
def test_a_stopped_holder_of_a_row_does_not_stop_the_others(fresh_database: str) -> None:
    Project.objects.create(slug="eu", name="x")
    stopped = connections.create_connection("default")
    stopped.set_autocommit(False)
    with stopped.cursor() as cursor:
        cursor.execute("SET idle_in_transaction_session_timeout = '300ms'")
        cursor.execute("SELECT id FROM accounts_project WHERE slug = 'eu' FOR UPDATE")
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("SET LOCAL lock_timeout = '60s'")
        Project.objects.select_for_update().get(slug="eu")
    stopped.close()


def web_process(**environment: str) -> subprocess.Popen[str]:
    """A process that loads what the web process loads and asks a question that takes a minute."""
    environ = {name: value for name, value in os.environ.items() if name != "ADAPTERHUB_STATEMENT_S"}
    return subprocess.Popen(
        [sys.executable, "-c", ASLEEP],
        cwd=settings.ROOT,
        env=environ | environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.mark.threat("D2")
@pytest.mark.slow
def test_a_long_statement_of_the_web_process_is_ended(db: None) -> None:
    output, failed = web_process(ADAPTERHUB_STATEMENT_S="1").communicate(timeout=50)
    assert output.strip() == "1s"
    assert "canceling statement due to statement timeout" in failed


def test_without_a_setting_the_web_process_waits_thirty_seconds(db: None) -> None:
    process = web_process()
    assert process.stdout
    assert process.stdout.readline().strip() == "30s"
    process.kill()
    process.communicate()


@pytest.mark.threat("D2")
@pytest.mark.slow
def test_a_request_whose_statement_was_ended_is_told_to_come_again(fresh_database: str, ci: str) -> None:
    """Somebody holds the table: the call neither waits for ever nor fails as if we had made a mistake."""
    holder = connections.create_connection("owner")
    holder.set_autocommit(False)
    with holder.cursor() as cursor, connection.cursor() as own_cursor:
        cursor.execute("LOCK TABLE registry_adapter")
        own_cursor.execute("SET statement_timeout = '200ms'")
        answer = APIClient(headers={"Authorization": f"Bearer {ci}"}).get("/api/v1/adapters/")
        own_cursor.execute("RESET statement_timeout")
    holder.close()
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
    assert answer["Retry-After"]
