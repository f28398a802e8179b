"""Live events of a training run: one snapshot for clients that poll, a stream of snapshots for clients that listen."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

from asgiref.sync import sync_to_async
from django.db import connection
from django.http import StreamingHttpResponse
from rest_framework.renderers import BaseRenderer
from rest_framework.request import Request

from adapterhub.core.errors import Invalid, TooMany
from training.models import RunLog, TrainingRun

POLL_S = 1.0
SILENCE_S = 15.0
# After this time the client reconnects by itself.
STREAM_S = 600.0
STEPS = 5_000
# Each stream asks the database every second: so many of one caller in a process, who shows a page for each.
MOST_OF_ONE = 20
open_streams: Counter[str] = Counter()


class EventStream(BaseRenderer):
    """Renderer that registers the media type text/event-stream; the response itself writes the stream."""

    media_type = "text/event-stream"
    format = "events"

    def render(self, data: Any, accepted_media_type: str | None = None, context: Any = None) -> bytes:
        """Return the error body of a refused stream request as JSON."""
        return json.dumps(data).encode()


Place = tuple[int, int]


def place_of(request: Request) -> Place:
    """Return (last step seen, log bytes seen) from Last-Event-ID, else from `after` and `log_from` in the query.

    Both are 0 if nothing is given. Raises Invalid unless they are two whole numbers.
    """
    last_event = request.headers.get("Last-Event-ID", "")
    words = last_event.split(":") if last_event else [request.GET.get("after", "0"), request.GET.get("log_from", "0")]
    if len(words) != 2 or not all(word.isdecimal() and len(word) < 19 for word in words):
        raise Invalid("after and log_from must be whole numbers: a step, and a byte of the log.", field="after")
    return int(words[0]), int(words[1])


def snapshot(run: TrainingRun, place: Place) -> dict[str, Any]:
    """Return a snapshot of the run: state, progress, and the metrics and log text that are new since `place`.

    `place` is (last step seen, log bytes seen); `after` and `log_from` in the snapshot are the next one. It has at most
    STEPS steps of metrics; `ended` is True once the run is over and no step is left to read.
    """
    step, position = place
    steps = list(run.metrics.filter(step__gt=step).values("step", "values")[:STEPS])
    text, position = RunLog.since(run, position)
    return {
        "status": run.status,
        "reason": run.reason,
        "message": run.message,
        "progress": run.progress,
        "metrics": steps,
        "log": text,
        "after": steps[-1]["step"] if steps else step,
        "log_from": position,
        "ended": not run.is_active and len(steps) < STEPS,
    }


def stream_of(run: TrainingRun, place: Place, may_listen: Callable[[], bool], caller: str) -> StreamingHttpResponse:
    """Return the response of server-sent events, with headers that stop proxies from buffering it.

    It ends as soon as `may_listen` returns False, so that a revoked token or an ended session gets nothing more. Raises
    TooMany if the caller has MOST_OF_ONE streams open.
    """
    if open_streams[caller] >= MOST_OF_ONE:
        raise TooMany(f"You have {MOST_OF_ONE} event streams open: close one first.", wait_s=SILENCE_S)
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    parts = counted(stream(run.pk, place, may_listen), caller)
    return StreamingHttpResponse(parts, content_type="text/event-stream", headers=headers)


async def counted(parts: AsyncGenerator[str], caller: str) -> AsyncIterator[str]:
    """Yield the parts of a stream, which is counted among the caller's open streams until it ends."""
    open_streams[caller] += 1
    try:
        async with aclosing(parts):
            async for part in parts:
                yield part
    finally:
        open_streams[caller] -= 1
        if not open_streams[caller]:
            del open_streams[caller]


async def stream(pk: Any, place: Place, may_listen: Callable[[], bool]) -> AsyncGenerator[str]:
    """Yield a snapshot as an event on each change, a comment after SILENCE_S seconds without one, and `end`.

    `place` is (last step, log bytes) seen; new metrics and log text are changes, too. `end` is sent when the run
    has ended. The stream stops without it after STREAM_S seconds, and once `may_listen` returns False.
    """
    began = last_sent_at = time.monotonic()
    before: dict[str, Any] = {}
    while time.monotonic() - began < STREAM_S:
        state = await sync_to_async(snapshot_once)(pk, place, may_listen)
        if state is None:
            return
        place = (state["after"], state["log_from"])
        if state["metrics"] or state["log"] or state_fields(state) != before:
            before, last_sent_at = state_fields(state), time.monotonic()
            yield f"id: {place[0]}:{place[1]}\nevent: look\ndata: {json.dumps(state)}\n\n"
        elif time.monotonic() - last_sent_at > SILENCE_S:
            last_sent_at = time.monotonic()
            yield ": still here\n\n"
        if state["ended"] and not state["log"]:
            yield "event: end\ndata: {}\n\n"
            return
        await asyncio.sleep(POLL_S)


def state_fields(state: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a snapshot that the stream compares with its last event: status, progress, message.

    A change of one of them causes an event, as new metrics or new log text do.
    """
    return {name: state[name] for name in ("status", "progress", "message")}


def snapshot_once(pk: Any, place: Place, may_listen: Callable[[], bool]) -> dict[str, Any] | None:
    """Return a snapshot of the run with this key; None for a caller who may no longer listen.

    The database connection is closed afterwards: a stream must not hold one for hours.
    """
    try:
        return snapshot(TrainingRun.objects.get(pk=pk), place) if may_listen() else None
    finally:
        connection.close()
