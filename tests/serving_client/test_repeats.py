"""What the router says of an outage."""

from __future__ import annotations

import logging

import pytest

from serving_client.router.repeats import OnceAMinute


def test_an_outage_is_told_once_a_minute_and_another_matter_at_once(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    said = OnceAMinute(clock=lambda: now[0])
    log = logging.getLogger("router")
    caplog.handler.addFilter(said)
    try:
        for second in range(121):
            now[0] = float(second)
            log.warning("Valkey does not answer (%s).", f"attempt {second}")
            log.error("The disk is full.") if second == 30 else None
    finally:
        caplog.handler.removeFilter(said)
    assert [record.getMessage() for record in caplog.records] == [
        "Valkey does not answer (attempt 0).",
        "The disk is full.",
        "Valkey does not answer (attempt 60).",
        "Valkey does not answer (attempt 120).",
    ]
