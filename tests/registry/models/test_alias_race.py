"""Many move one alias at the same moment: exactly one wins, the others learn what is served now."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

from django.db import connection
from rest_framework.test import APIClient

from adapterhub.audit.models import AuditEvent
from registry.models import AdapterVersion, Alias

THREADS = 50


def test_one_of_fifty_movers_wins(
    fresh_database: str, alias: Alias, make_version: Callable[..., AdapterVersion], ci: str
) -> None:
    stable = alias.version
    targets = [make_version(stable.adapter, seed=100 + number) for number in range(5)]
    together = Barrier(THREADS)

    def move(number: int) -> Any:
        api = APIClient(headers={"Authorization": f"Bearer {ci}"})
        body = {"version": targets[number % 5].served_name, "expected_version": stable.served_name, "reason": "mine"}
        together.wait(60)
        try:
            return api.post("/api/v1/aliases/compliance/move/", body)
        finally:
            connection.close()

    with ThreadPoolExecutor(THREADS) as threads:
        answers = list(threads.map(move, range(THREADS)))

    alias.refresh_from_db()
    assert sorted(answer.status_code for answer in answers) == [200] + [409] * (THREADS - 1)
    (winner,) = (answer.json() for answer in answers if answer.status_code == 200)
    assert winner["version"] == alias.version.served_name
    for problem in (answer.json() for answer in answers if answer.status_code == 409):
        assert problem["code"] == "alias_moved"
        assert f"serves {alias.version} now" in problem["detail"]
    assert alias.moves.count() == 2
    assert AuditEvent.objects.filter(tag="alias:moved").count() == 1
