"""The types of the REST objects. Times are ISO 8601 in UTC; sizes are bytes."""

from __future__ import annotations

from typing import Any, Generic, TypedDict, TypeVar

Json = dict[str, Any]
Row = TypeVar("Row")


class Page(TypedDict, Generic[Row]):
    """A page of a list. `next` is the address of the next one; null on the last."""

    next: str | None
    results: list[Row]


class Project(TypedDict):
    """A project."""

    slug: str
    name: str


class Dataset(TypedDict):
    """A dataset. `status` is checking, ready, rejected or erased.

    `same_as` is the id of an earlier dataset with the same content, or null.
    """

    id: int
    name: str
    status: str
    message: str
    digest: str
    file_digest: str
    same_as: int | None
    rows: int
    splits: dict[str, int]
    errors: list[Json]
    warnings: list[Any]


class CheckedFile(TypedDict):
    """A file that was checked without storing it. `dataset` is the id of a dataset with the same content, or null."""

    dataset: int | None
    digest: str
    rows: int
    splits: dict[str, int]
    columns: list[str]


class SameFile(TypedDict):
    """The id and status of the dataset that was made of a file; both null if there is none."""

    dataset: int | None
    status: str | None


class Adapter(TypedDict):
    """An adapter."""

    slug: str
    project: str
    base_model: str
    description: str
    tags: list[str]


class Job(TypedDict):
    """A job. `status` is queued, running, stopping, succeeded, failed or cancelled."""

    id: str
    project: str
    base_model: str
    dataset: int
    status: str
    reason: str
    message: str
    progress: Json


class RankAnalysis(Job):
    """A rank analysis. Once it has succeeded, it also has the plan's fields: `rank_pattern`, `parameters`, ..."""

    budget: Json


class Preflight(TypedDict):
    """The needs of a training, and every hyper-parameter that it would have."""

    data: Json
    memory: Json
    disk: Json
    time: Json
    queue: Json
    hyperparameters: Json


class TrainingRun(Job):
    """A training run. `version` is the served name of the version that it made, null until then.

    `loss_before` and `loss_after` are held-out losses in nats a token.
    """

    adapter: str
    method: str
    hyperparameters: Json
    rank_analysis: str | None
    budget: Json | None
    mixture: list[Json]
    validation_dataset: int | None
    version: str | None
    loss_before: float | None
    loss_after: float | None


class Evaluation(Job):
    """An evaluation. `against` is the served name of the version compared with, null for none.

    `task` is a task of lm-eval, or empty. `metrics` is null until it has succeeded.
    """

    version: str
    against: str | None
    task: str
    metrics: Json | None


class Version(TypedDict):
    """A version of an adapter. `status` is checking, ready, unservable, rejected or archived.

    An unservable one can be downloaded and reduced to a plain LoRA, but is never loaded.
    """

    adapter: str
    number: int
    served_name: str
    status: str
    message: str
    digest: str


class Alias(TypedDict):
    """An alias. `version` is the served name of the version that it serves now."""

    name: str
    project: str
    cluster: str
    version: str
    policy: Json
    generation: int


class Cluster(TypedDict):
    """A cluster: replicas of one engine with one base model."""

    slug: str
    project: str
    base_model: str
    engine: str
    max_lora_rank: int
    max_loras: int
    routing: str
    discovery: str
    discovered_at: str | None
    discovery_message: str
    has_engine_key: bool


class Replica(TypedDict):
    """A replica as it was last observed. `draining_since` is null unless it is drained."""

    id: int
    cluster: str
    url: str
    is_healthy: bool
    draining_since: str | None
    is_discovered: bool
    gone_since: str | None
    message: str


class ReplicaState(TypedDict):
    """Desired and observed versions of a replica; `foreign` are those that AdapterHub did not load."""

    id: int
    url: str
    is_healthy: bool
    draining_since: str | None
    desired: list[str]
    observed: list[str]
    missing: list[str]
    surplus: list[str]
    foreign: list[str]
    message: str


class Rollout(TypedDict):
    """A rollout. `weight` is the candidate's share of the traffic in percent, `step` counts from 0.

    `status` is draft, discarded, loading, running, paused, awaiting_approval, promoted, rolled_back or failed;
    `status_reason` says why.
    """

    id: str
    alias: str
    stable: str
    candidate: str
    status: str
    status_reason: str
    weight: float
    steps: list[Step]
    step: int
    guardrails: list[Guardrail]
    generation: int
    reason: str
    waits_for_signature: bool
    verdicts: Json | None


class Approval(TypedDict):
    """A request for signatures, of which `quorum` are needed.

    `status` is pending, approved, rejected, lapsed, used, glass_broken or reviewed.
    """

    id: str
    kind: str
    alias: str
    rollout: str | None
    candidate: str | None
    quorum: int
    status: str
    reason: str
    signatures: list[Json]


class BlindTest(TypedDict):
    """A prompt that several versions answered, and people's votes."""

    id: str
    prompt: str
    versions: list[int]
    answers: list[Json]
    votes: list[Json]


class Refusal(TypedDict):
    """A reason for which the server would refuse a part of a declaration; `field` is the path in the file."""

    field: str
    code: str
    message: str
    status: int


class PlanCheck(TypedDict):
    """The check of a declaration: what would be refused, the full hyperparameters, and the token's scopes.

    `hyperparameters` is null if no training is needed, or if they are invalid.
    """

    refusals: list[Refusal]
    hyperparameters: Json | None
    scopes: list[str]


class Move(TypedDict):
    """A move of an alias: the version that it serves since `at`, and who moved it and why."""

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
