"""The types of the REST objects. Times are ISO 8601 in UTC; sizes are bytes."""

from __future__ import annotations

from typing import Any, TypedDict

Json = dict[str, Any]


class Dataset(TypedDict):
    """A dataset as the API returns it."""

    id: int
    name: str
    status: str
    message: str
    digest: str
    rows: int


class Job(TypedDict):
    """A job. `status` is queued, running, stopping, succeeded, failed or cancelled."""

    id: str
    status: str
    reason: str
    message: str
    progress: Json


class RankAnalysis(Job):
    """A rank analysis as the API returns it."""

    budget: Json


class TrainingRun(Job):
    """A training run as the API returns it."""

    adapter: str
    method: str
    version: str | None
    loss_before: float | None
    loss_after: float | None


class Evaluation(Job):
    """An evaluation. `metrics` is null until it has succeeded."""

    version: str
    against: str | None
    metrics: Json | None


class Version(TypedDict):
    """A version of an adapter. `status` is checking, ready, rejected or archived."""

    adapter: str
    number: int
    served_name: str
    status: str
    message: str
    digest: str


class Rollout(TypedDict):
    """A rollout. `weight` is the candidate's share of the traffic in percent."""

    id: str
    alias: str
    stable: str
    candidate: str
    status: str
    weight: float
    generation: int
    waits_for_signature: bool


class Move(TypedDict):
    """A move of an alias."""

    version: str
    at: str
    actor_name: str
    reason: str


class Fault(TypedDict):
    """A fault of an audit chain."""

    sequence: int
    fault: str


class Verdict(TypedDict):
    """The result of verifying an audit trail."""

    project: str
    ok: bool
    events: int
    faults: list[Fault]


class Step(TypedDict, total=False):
    """A step of a rollout. `weight` is in percent, `hold_s` in seconds."""

    weight: float
    hold_s: int
    min_samples: int
    approval: bool


class Guardrail(TypedDict, total=False):
    """A guardrail. `margin` is in the metric's unit; `level` is the quantile, 0.95 for p95."""

    metric: str
    margin: float
    kind: str
    level: float
