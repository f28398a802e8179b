"""Changes at once share a publication; nobody is told it is done by one that began before his change."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from registry.serving.coalescing import CoalescedRun


def telling(drawn: threading.Semaphore) -> Callable[[int], int]:
    def tell(ticket: int) -> int:
        drawn.release()
        return ticket

    return tell


def test_those_who_wait_share_the_next_round() -> None:
    go_on, drawn, runs = threading.Event(), threading.Semaphore(0), []

    def work() -> None:
        runs.append(1)
        assert go_on.wait(60)

    rounds = CoalescedRun(work)
    rounds.tickets = map(telling(drawn), itertools.count(1))  # type: ignore[assignment]
    with ThreadPoolExecutor(9) as pool:
        waiting = [pool.submit(rounds.join)]
        # Its own ticket, and the last that its round serves.
        assert all(drawn.acquire(timeout=60) for _ in range(2))
        waiting += [pool.submit(rounds.join) for _ in range(8)]
        assert all(drawn.acquire(timeout=60) for _ in range(8))
        assert not any(one.done() for one in waiting), "the round that runs began before them"
        go_on.set()
        for one in waiting:
            one.result(60)
    assert len(runs) == 2


def test_one_after_the_other_each_has_a_round() -> None:
    runs: list[int] = []
    rounds = CoalescedRun(lambda: runs.append(1))
    for _ in range(3):
        rounds.join()
    assert len(runs) == 3


def test_a_failed_round_serves_nobody_else() -> None:
    outcomes = iter([ConnectionError("away"), None])

    def work() -> None:
        if failure := next(outcomes):
            raise failure

    rounds = CoalescedRun(work)
    with pytest.raises(ConnectionError):
        rounds.join()
    rounds.join()
    assert next(outcomes, "all were used") == "all were used"
