"""The calls of the REST API as values: the request, and the type of the response. The clients carry them out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, TypeVar
from urllib.parse import parse_qsl, quote, urlsplit

from adapterhub.client.shapes import (
    Dataset,
    Evaluation,
    Guardrail,
    Json,
    Move,
    RankAnalysis,
    Rollout,
    Step,
    TrainingRun,
    Verdict,
    Version,
)

T = TypeVar("T")


@dataclass(frozen=True)
class Call(Generic[T]):
    """A request below /api/v1/ whose response has the type T. `files` are sent as multipart, with `body` as fields."""

    method: str
    path: str
    body: Mapping[str, Any] | None = None
    params: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, Path] = field(default_factory=dict)


def get(path: str, **params: str) -> Call[Any]:
    """Return a call that reads."""
    return Call("GET", path, params=params)


def post(path: str, **body: Any) -> Call[Any]:
    """Return a call that creates or acts."""
    return Call("POST", path, body)


def page_after(call: Call[Json], listing: Json) -> Call[Json] | None:
    """Return the call of the list's next page; None after the last.

    Only the query of the link is used, so that the token is sent to the client's own address alone.
    """
    query = urlsplit(listing["next"] or "").query
    return replace(call, params=dict(parse_qsl(query))) if query else None


def part(name: str) -> str:
    """Return the name percent-encoded as a single path segment, whatever characters it holds."""
    return quote(name, safe="")


def projects() -> Call[Json]:
    """List the projects that the token sees."""
    return get("projects/")


def upload_dataset(project: str, file: Path, **fields: Any) -> Call[Dataset]:
    """Upload a file. Fields: name, format, encoding, escape, mapping."""
    return Call("POST", "datasets/", {"project": project, **as_form(fields)}, files={"file": file})


def check_dataset(project: str, file: Path, **fields: Any) -> Call[Json]:
    """Check a file without storing it; the response's `dataset` is the id of a dataset of the same content, or null."""
    return Call("POST", "datasets/check/", {"project": project, **as_form(fields)}, files={"file": file})


def as_form(fields: Json) -> Json:
    """Return fields of a multipart request: what is no text is sent as JSON."""
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in fields.items()}


def adapter(slug: str) -> Call[Json]:
    """Read an adapter."""
    return get(f"adapters/{part(slug)}/")


def create_adapter(project: str, slug: str, base_model: str, **fields: Any) -> Call[Json]:
    """Create an adapter. Fields: description, tags."""
    return post("adapters/", project=project, slug=slug, base_model=base_model, **fields)


def change_adapter(slug: str, **fields: Any) -> Call[Json]:
    """Change an adapter. Fields: description, tags."""
    return Call("PATCH", f"adapters/{part(slug)}/", fields)


def bring_dataset(project: str, source: str, **fields: Any) -> Call[Dataset]:
    """Have a worker read `s3://bucket/key` or `hf://owner/name`. Fields: name, revision, config, split, mapping."""
    return post("datasets/", project=project, source=source, **fields)


def dataset(pk: int) -> Call[Dataset]:
    """Read a dataset."""
    return get(f"datasets/{pk}/")


def analyze(project: str, base_model: str, dataset: int, budget: Json, **settings: Any) -> Call[RankAnalysis]:
    """Queue a rank analysis. `budget` is one of {uniform_rank}, {parameters}, {bytes}."""
    return post("rank-analyses/", project=project, base_model=base_model, dataset=dataset, budget=budget, **settings)


def rank_analysis(pk: str) -> Call[RankAnalysis]:
    """Read a rank analysis."""
    return get(f"rank-analyses/{part(pk)}/")


def rank_analyses(**filters: str) -> Call[Json]:
    """List rank analyses, newest first.

    Filters: project, base_model, dataset, preset, status, created_after, created_before.
    """
    return get("rank-analyses/", page_size="200", **filters)


def training_runs(**filters: str) -> Call[Json]:
    """List training runs, newest first.

    Filters: project, adapter, dataset, method, rank_analysis, status, created_after, ...
    """
    return get("training-runs/", page_size="200", **filters)


def preflight(project: str, adapter: str, dataset: int, **fields: Any) -> Call[Json]:
    """Estimate what a run needs and complete its hyperparameters; nothing is queued. Fields: those of `train`."""
    return post("training-runs/preflight/", project=project, adapter=adapter, dataset=dataset, **fields)


def train(project: str, adapter: str, dataset: int, **fields: Any) -> Call[TrainingRun]:
    """Queue a training run.

    Fields: method, mixture, validation_dataset, rank_analysis, hyperparameters, prompts, priority, anyway.
    """
    return post("training-runs/", project=project, adapter=adapter, dataset=dataset, **fields)


def training_run(pk: str) -> Call[TrainingRun]:
    """Read a training run."""
    return get(f"training-runs/{part(pk)}/")


def run_metrics(pk: str) -> Call[list[Json]]:
    """List the metrics of every logged step of a training run."""
    return get(f"training-runs/{part(pk)}/metrics/")


def metric_file(pk: str, kind: str = "csv") -> Call[bytes]:
    """Download the metrics of a training run as `csv` or as an event file of `tensorboard`."""
    return get(f"training-runs/{part(pk)}/metric-file/", **{"as": kind})


def push(adapter: str, folder: Path, *, fold: bool = False, **fields: str) -> Call[Version]:
    """Publish the PEFT folder as the adapter's next version. Fields: confirm_base, source_sha256, conversions."""
    files = {"adapter_model": folder / "adapter_model.safetensors", "adapter_config": folder / "adapter_config.json"}
    return Call("POST", f"adapters/{part(adapter)}/versions/", {"fold": str(fold).lower(), **fields}, files=files)


def check_adapter(
    adapter: str, config: Path, header: Path, size: int, *, fold: bool = False, confirm_base: str = ""
) -> Call[Json]:
    """Check an adapter before its upload; `header` holds the first bytes of weights of `size` bytes."""
    fields = {"size": str(size), "fold": str(fold).lower(), "confirm_base": confirm_base}
    files = {"adapter_config": config, "header": header}
    return Call("POST", f"adapters/{part(adapter)}/versions/check/", fields, files=files)


def version(adapter: str, number: int) -> Call[Version]:
    """Read a version."""
    return get(f"adapters/{part(adapter)}/versions/{number}/")


def download(adapter: str, number: int) -> Call[bytes]:
    """Download the version's files as they were published, as a ZIP."""
    return get(f"adapters/{part(adapter)}/versions/{number}/download/")


def dossier(adapter: str, number: int) -> Call[Json]:
    """Read a version's dossier."""
    return get(f"adapters/{part(adapter)}/versions/{number}/dossier/")


def evaluate(project: str, version: str, dataset: int, **fields: Any) -> Call[Evaluation]:
    """Queue an evaluation of a served name. Fields: against, prompts, pattern."""
    return post("evaluations/", project=project, version=version, dataset=dataset, **fields)


def evaluations(**filters: str) -> Call[Json]:
    """List evaluations, newest first.

    Filters: project, version, against, dataset, status, created_after, created_before.
    """
    return get("evaluations/", page_size="200", **filters)


def evaluation(pk: str) -> Call[Evaluation]:
    """Read an evaluation."""
    return get(f"evaluations/{part(pk)}/")


def ask_blindly(adapter: str, versions: Sequence[int], prompts: Sequence[str], **fields: Any) -> Call[list[Json]]:
    """Send each prompt to every version, for people to vote on the answers without knowing the version.

    Fields: max_tokens.
    """
    return post("blind-tests/", adapter=adapter, versions=list(versions), prompts=list(prompts), **fields)


def blind_tests(adapter: str) -> Call[Json]:
    """List blind tests with their votes, newest first."""
    return get("blind-tests/", adapter=adapter)


def approvals() -> Call[Json]:
    """List approval requests, newest first."""
    return get("approvals/")


def history(alias: str, at: str = "") -> Call[list[Move]]:
    """List every move of the alias, or with a time the move that was in effect then."""
    return get(f"aliases/{part(alias)}/history/", **({"at": at} if at else {}))


def alias(name: str) -> Call[Json]:
    """Read an alias."""
    return get(f"aliases/{part(name)}/")


def create_alias(project: str, name: str, cluster: str, version: str, policy: Json) -> Call[Json]:
    """Create a public name that serves a version."""
    return post("aliases/", project=project, name=name, cluster=cluster, version=version, policy=policy)


def set_policy(alias: str, policy: Json) -> Call[Json]:
    """Set an alias' policy."""
    return Call("PATCH", f"aliases/{part(alias)}/", {"policy": policy})


def rollouts(alias: str, **filters: str) -> Call[Json]:
    """List the alias' rollouts, newest first. Filters: candidate, stable, status, created_after, created_before."""
    return get("rollouts/", alias=alias, **filters)


def rollout(pk: str) -> Call[Rollout]:
    """Read a rollout."""
    return get(f"rollouts/{part(pk)}/")


def open_rollout(
    alias: str,
    candidate: str,
    steps: Sequence[Step],
    reason: str,
    guardrails: Sequence[Guardrail] = (),
    checks: Json | None = None,
    draft: bool = False,
) -> Call[Rollout]:
    """Open a rollout. A draft waits until it is started.

    `checks` are what answers are checked for: refusal, format, schema, judge.
    """
    plan = {"steps": list(steps), "guardrails": list(guardrails), "checks": checks or {}, "draft": draft}
    return post("rollouts/", alias=alias, candidate=candidate, reason=reason, **plan)


def start(rollout: Rollout, reason: str) -> Call[Rollout]:
    """Start a draft, if nobody has changed it since it was read."""
    return post(f"rollouts/{rollout['id']}/start/", reason=reason, expected_generation=rollout["generation"])


def promote(rollout: Rollout, reason: str) -> Call[Rollout]:
    """Let the candidate serve all traffic, if nobody has changed the rollout since it was read."""
    body = {"reason": reason, "expected_generation": rollout["generation"]}
    return post(f"rollouts/{rollout['id']}/promote/", **body)


def roll_back(rollout: Rollout, reason: str) -> Call[Rollout]:
    """Roll a rollout back."""
    return post(f"rollouts/{rollout['id']}/rollback/", reason=reason)


def verify_audit(project: str) -> Call[Verdict]:
    """Verify a project's audit trail."""
    return get("audit/verify/", project=project)


def export_audit(project: str, kind: str = "jsonl") -> Call[bytes]:
    """Export a project's audit trail."""
    return get("audit/export/", project=project, **{"as": kind})
