"""What the router says of an outage."""

from __future__ import annotations

import logging

from serving_client.router.reporting.log_throttle import OnceAMinute


def test_an_outage_is_told_once_a_minute_and_another_matter_at_once() -> None:
    now, logged = [0.0], list[str]()
    handler = logging.Handler()
    handler.emit = lambda record: logged.append(record.getMessage())  # type: ignore[method-assign]
    handler.addFilter(OnceAMinute(clock=lambda: now[0]))
    log = logging.Logger("router")
    log.addHandler(handler)
    for second in range(121):
        now[0] = float(second)
        log.warning("Valkey does not answer (%s).", f"attempt {second}")
        if second == 30:
            log.error("The disk is full.")
    assert logged == [
        "Valkey does not answer (attempt 0).",
        "The disk is full.",
        "Valkey does not answer (attempt 60).",
        "Valkey does not answer (attempt 120).",
    ]
