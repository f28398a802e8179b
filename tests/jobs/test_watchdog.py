"""A worker whose connection to the broker died without a word."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from celery.worker import state

from adapterhub.embedded.valkey import EmbeddedValkey
from adapterhub.jobs import watchdog
from adapterhub.jobs.tasks import sweep
from registry.serving.valkey import valkey as connect
from tests.fakes.half_open import HalfOpening, half_opening
from tests.waiting import wait_until

# As `celery -A adapterhub worker -Q control`, but impatient.
SCRIPT = """
import sys
from adapterhub.jobs import watchdog
watchdog.CHECK_EVERY_S, watchdog.DEAF_S = 0.5, 3.0
from adapterhub.celery import app
app.worker_main(["worker", "-Q", "control", "--pool", "solo", "--loglevel", "INFO"])
"""


@contextmanager
def worker(broker: HalfOpening, database: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    environment = os.environ | {"REDIS_URL": broker.url, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with (
        log.open("wb") as output,
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", SCRIPT], env=environment, stdout=output, stderr=output
        ) as process,
    ):
        try:
            wait_until(lambda: b" ready." in log.read_bytes(), 60, "the worker is ready")
            yield process
        finally:
            process.kill()


def is_taken() -> bool:
    """A message is sent, and the queue is empty afterwards."""
    sweep.delay()
    with connect() as client:
        wait_until(lambda: client.llen("control") == 0, 30, "the message is taken")
    return True


@pytest.mark.slow
def test_it_ends_and_its_successor_hears(fresh_database: str, valkey: EmbeddedValkey, tmp_path: Path) -> None:
    with half_opening(str(valkey.layout.valkey_socket)) as broker:
        with worker(broker, fresh_database, tmp_path / "log") as deaf:
            assert is_taken()
            broker.forget()
            sweep.delay()
            assert deaf.wait(60) == os.EX_TEMPFAIL, (tmp_path / "log").read_text()
        with worker(broker, fresh_database, tmp_path / "next"):
            assert is_taken()


@pytest.mark.parametrize("sign", ["a message was taken", "it works", "nothing waits"])
def test_a_sign_of_life_is_enough(sign: str, valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "DEAF_S", -1.0)
    watched = watchdog.Watchdog(["default"])
    with connect() as client:
        client.rpush("default", "a message")
        watched.is_deaf()
        monkeypatch.setattr(watchdog, "DEAF_S", 0.0)
        assert watched.is_deaf()
        if sign == "nothing waits":
            client.delete("default")
    if sign == "a message was taken":
        monkeypatch.setitem(state.total_count, "any", 1)
    if sign == "it works":
        monkeypatch.setattr(state, "reserved_requests", {object()})
    monkeypatch.setattr(watchdog, "DEAF_S", 3600.0)
    before = watched._last_sign
    assert not watched.is_deaf()
    assert watched._last_sign > before
