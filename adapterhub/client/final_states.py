"""The ends of what the server carries on with: jobs, checks of data and versions, rollouts."""

from __future__ import annotations

from typing import Any, cast

from adapterhub.client.calls import Call, dataset
from adapterhub.client.errors import Failed
from adapterhub.client.rest_types import Json

GOOD = {"succeeded", "ready", "unservable", "promoted"}
ENDED = {*GOOD, "failed", "cancelled", "rejected", "rolled_back", "discarded", "erased"}
# A paused rollout goes on only when somebody resumes it, so nobody should wait for it.
STOPPED = {*ENDED, "paused"}


def require_waitable(call: Call[Any]) -> None:
    """Raise ValueError unless the call reads an object, or its answer names an object that can be read again."""
    if call.method != "GET" and call.reading is None:
        raise ValueError(f"{call.method} {call.path} starts nothing that can be waited for.")


def reading_of(call: Call[Any], answer: Any) -> Call[Any]:
    """Return the call that reads the answer's object again: that of `reading`, else the call itself."""
    return call.reading(answer) if call.reading else call


def is_over(answer: Any, until: str = "") -> bool:
    """Return True if the object changes no more by itself, or is paused, or has the status that is waited for.

    Raises ValueError for an object without a status.
    """
    status = cast(Json, answer).get("status") if isinstance(answer, dict) else None
    if status is None:
        raise ValueError("The object has no status that can be waited for.")
    return status in (until, *STOPPED)


def twin_of(answer: Any) -> Call[Any] | None:
    """Return the call that reads the dataset whose content a rejected upload repeats; None for any other object."""
    twin = cast(Json, answer).get("same_as")
    return None if twin is None else dataset(twin)


def require_good(answer: Any, name: str, until: str = "") -> None:
    """Raise Failed, with the reason, unless the object ended well or has the status that was waited for."""
    resource = cast(Json, answer)
    status = str(resource["status"])
    if status not in (until, *GOOD):
        raise Failed(f"{name} {status.replace('_', ' ')}: {explanation(resource)}", resource)


def explanation(resource: Json) -> str:
    """Return the reason of the object's status, in the server's words; `no reason given` without one."""
    # A rollout's `reason` says why it was opened.
    words = ("status_reason",) if "status_reason" in resource else ("message", "reason")
    return next((str(resource[name]) for name in words if resource.get(name)), "no reason given")
