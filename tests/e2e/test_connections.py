"""The web process keeps a bounded number of Postgres connections, however many requests it has answered."""

from __future__ import annotations

import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest
from django.db import connection

POOL = 16


@pytest.mark.slow
def test_requests_leave_no_connections_behind(site_process: str, ci: str) -> None:
    listing = urllib.request.Request(f"{site_process}/api/v1/aliases/", headers={"Authorization": f"Bearer {ci}"})  # noqa: S310

    def request(_: int) -> int:
        with urllib.request.urlopen(listing, timeout=30) as answer:  # noqa: S310 - our own process
            return int(answer.status)

    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()")
        before = cursor.fetchone()[0]
        with ThreadPoolExecutor(40) as clients:
            assert set(clients.map(request, range(200))) == {200}
        cursor.execute("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()")
        assert cursor.fetchone()[0] - before <= POOL
