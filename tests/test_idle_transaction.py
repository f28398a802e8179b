"""A process that is stopped inside a transaction loses its locks: the server ends the transaction."""

from __future__ import annotations

from django.conf import settings
from django.db import connection, connections, transaction

from adapterhub.accounts.models import Project


def test_the_application_s_connections_have_the_limit(db: None) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT setting::int FROM pg_settings WHERE name = 'idle_in_transaction_session_timeout'")
        assert cursor.fetchone()[0] == settings.IDLE_IN_TRANSACTION_S * 1000


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
