"""The router under mixed load while the table changes all the time."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.fakes.routing import CANDIDATE, INFER, STABLE, make_table
from tests.fakes.stage import Router, announce, running_engine, running_router, running_valkey

pytestmark = pytest.mark.slow

CALLERS = 4
CHANGE_S = 0.25


def call(router: Router, end: float, counts: Counter[str], faults: list[str]) -> None:
    """Ask again and again, plain and streaming, with and without a user."""
    chance = random.Random(threading.get_ident())
    while time.monotonic() < end:
        user = {"user": f"user-{chance.randrange(1000)}"} if chance.random() < 0.9 else {}
        response = router.complete(INFER, stream=chance.random() < 0.3, **user)
        version = response.headers.get("X-Adapter-Version", "")
        if response.status_code != 200 or version not in response.text:
            faults.append(f"{response.status_code} {version} {response.text[:200]}")
        counts[version] += 1


def test_every_answer_names_the_version_that_gave_it(soak_s: float, tmp_path: Path) -> None:
    counts: Counter[str] = Counter()
    faults: list[str] = []
    with (
        running_valkey() as valkey,
        running_engine() as one,
        running_engine() as two,
        running_router(valkey, tmp_path) as router,
    ):
        router.publish(make_table(one.url, two.url))
        end = time.monotonic() + soak_s
        callers = [threading.Thread(target=call, args=(router, end, counts, faults)) for _ in range(CALLERS)]
        for caller in callers:
            caller.start()
        generation, paused = 1, threading.Event()
        while not paused.wait(CHANGE_S) and time.monotonic() < end:
            generation += 1
            replicas = random.choice([(one.url,), (two.url,), (one.url, two.url)])
            weight = random.choice([None, 0.0, 25.0, 50.0, 100.0])
            announce(valkey, make_table(*replicas, generation=generation, weight=weight))
            one.fake.received.clear()
            two.fake.received.clear()
        for caller in callers:
            caller.join()
        assert faults == []
        assert counts.keys() == {STABLE, CANDIDATE}
        assert len(router.reported(sum(counts.values()))) == sum(counts.values())
