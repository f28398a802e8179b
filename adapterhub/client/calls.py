"""The calls of the REST API as values: the request, and the type of the response. The clients carry them out."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any, Generic, TypeVar
from urllib.parse import parse_qsl, quote, urlsplit

from adapterhub.client.rest_types import (
    Adapter,
    Alias,
    Approval,
    BlindTest,
    CheckedFile,
    Dataset,
    Evaluation,
    Guardrail,
    Job,
    Json,
    Move,
    Page,
    PlanCheck,
    Preflight,
    Project,
    RankAnalysis,
    Rollout,
    SameFile,
    Step,
    TrainingRun,
    Verdict,
    Version,
)

T = TypeVar("T")
Row = TypeVar("Row")
File = str | PathLike[str]


@dataclass(frozen=True)
class Call(Generic[T]):
    """A request below /api/v1/ whose response has the type T; nothing is sent before a client's `send`.

    `files` are sent as multipart, with `body` as fields. `reading` takes the response and returns the
    call that reads its object again, so that a client can wait until it has ended.
    """

    method: str
    path: str
    body: Mapping[str, Any] | None = None
    params: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, Path] = field(default_factory=dict)
    reading: Callable[[Any], Call[Any]] | None = field(default=None, compare=False)


def get(path: str, **params: str) -> Call[Any]:
    """Return a GET call with these query parameters."""
    return Call("GET", path, params=params)


def post(path: str, **body: Any) -> Call[Any]:
    """Return a POST call with these fields as its JSON body."""
    return Call("POST", path, body)


def following(call: Call[T], reading: Callable[[Any], Call[Any]]) -> Call[T]:
    """Return the call with `reading`, which returns the call that reads its object again."""
    return replace(call, reading=reading)


def page_after(call: Call[Page[Row]], page: Page[Row]) -> Call[Page[Row]] | None:
    """Return the call of the list's next page; None after the last.

    Of the server's link only the query is used, so that the token is sent to the client's own address alone.
    """
    query = urlsplit(page["next"] or "").query
    return replace(call, params=dict(parse_qsl(query))) if query else None


def part(name: str) -> str:
    """Return the name percent-encoded as a single segment of a path."""
    return quote(name, safe="")


def check_plan(project: str, declared: Json) -> Call[PlanCheck]:
    """Check a declaration: the result lists what would refuse it. Nothing changes, and scope `read` suffices."""
    return post("plans/", project=project, **declared)


def projects() -> Call[Page[Project]]:
    """List the projects that the token sees."""
    return get("projects/")


def upload_dataset(project: str, file: File, **fields: Any) -> Call[Dataset]:
    """Upload a file. Fields: name, format, encoding, escape, mapping."""
    body = {"project": project, **as_form(fields)}
    call: Call[Dataset] = Call("POST", "datasets/", body, files={"file": Path(file)})
    return following(call, lambda created: dataset(created["id"]))


def check_dataset(project: str, file: File, **fields: Any) -> Call[CheckedFile]:
    """Check a file without storing it; the response's `dataset` is the id of a dataset of the same content, or null."""
    body = {"project": project, **as_form(fields)}
    return Call("POST", "datasets/check/", body, files={"file": Path(file)})


def lookup_dataset(project: str, sha256: str, filename: str) -> Call[SameFile]:
    """Find the dataset that was made of a file, by the sha256 of its bytes and its name."""
    return get("datasets/lookup/", project=project, sha256=sha256, filename=filename)


def as_form(fields: Json) -> Json:
    """Return fields for a multipart request: values other than text become JSON text."""
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in fields.items()}


def adapter(slug: str) -> Call[Adapter]:
    """Read an adapter."""
    return get(f"adapters/{part(slug)}/")


def create_adapter(project: str, slug: str, base_model: str, **fields: Any) -> Call[Adapter]:
    """Create an adapter. Fields: description, tags."""
    return post("adapters/", project=project, slug=slug, base_model=base_model, **fields)


def change_adapter(slug: str, **fields: Any) -> Call[Adapter]:
    """Change an adapter. Fields: description, tags."""
    return Call("PATCH", f"adapters/{part(slug)}/", fields)


def bring_dataset(project: str, source: str, **fields: Any) -> Call[Dataset]:
    """Have a worker fetch a dataset from `s3://bucket/key` or `hf://owner/name`.

    Fields: name, revision, config, split, mapping.
    """
    call = post("datasets/", project=project, source=source, **fields)
    return following(call, lambda created: dataset(created["id"]))


def dataset(pk: int) -> Call[Dataset]:
    """Read a dataset."""
    return get(f"datasets/{pk}/")


def analyze(project: str, base_model: str, dataset: int, budget: Json, **settings: Any) -> Call[RankAnalysis]:
    """Queue a rank analysis. `budget` is one of {uniform_rank}, {parameters}, {bytes}."""
    body = {"project": project, "base_model": base_model, "dataset": dataset, "budget": budget, **settings}
    return following(post("rank-analyses/", **body), lambda created: rank_analysis(created["id"]))


def rank_analysis(pk: str) -> Call[RankAnalysis]:
    """Read a rank analysis."""
    return get(f"rank-analyses/{part(pk)}/")


def rank_analyses(**filters: str) -> Call[Page[RankAnalysis]]:
    """List rank analyses, newest first.

    Filters: project, base_model, dataset, preset, status, created_after, created_before.
    """
    return get("rank-analyses/", page_size="200", **filters)


def training_runs(**filters: str) -> Call[Page[TrainingRun]]:
    """List training runs, newest first.

    Filters: project, adapter, dataset, method, rank_analysis, status, created_after, ...
    """
    return get("training-runs/", page_size="200", **filters)


def preflight(project: str, adapter: str, dataset: int, **fields: Any) -> Call[Preflight]:
    """Estimate what a run needs and complete its hyperparameters; nothing is queued. Fields: those of `train`."""
    return post("training-runs/preflight/", project=project, adapter=adapter, dataset=dataset, **fields)


def train(project: str, adapter: str, dataset: int, **fields: Any) -> Call[TrainingRun]:
    """Queue a training run.

    Fields: method, mixture, validation_dataset, rank_analysis, hyperparameters, prompts, priority, anyway.
    """
    call = post("training-runs/", project=project, adapter=adapter, dataset=dataset, **fields)
    return following(call, lambda created: training_run(created["id"]))


def training_run(pk: str) -> Call[TrainingRun]:
    """Read a training run."""
    return get(f"training-runs/{part(pk)}/")


def cancel_job(job: Job, reason: str = "") -> Call[Any]:
    """Cancel a job: a training run, a rank analysis, an evaluation. Its last checkpoint is kept."""
    return post(f"{resource_of(job)}/{part(job['id'])}/cancel/", **({"reason": reason} if reason else {}))


def resume_run(run: TrainingRun) -> Call[TrainingRun]:
    """Queue a failed or cancelled run again; it continues from its last checkpoint."""
    return following(post(f"training-runs/{part(run['id'])}/resume/"), lambda resumed: training_run(resumed["id"]))


def resource_of(job: Job) -> str:
    """Return the REST resource of a job, as its fields show it: training-runs, evaluations or rank-analyses."""
    return "training-runs" if "hyperparameters" in job else "evaluations" if "against" in job else "rank-analyses"


def run_metrics(pk: str) -> Call[list[Json]]:
    """List the metrics of every logged step of a training run."""
    return get(f"training-runs/{part(pk)}/metrics/")


def metric_file(pk: str, kind: str = "csv") -> Call[bytes]:
    """Download the metrics of a training run as `csv` or as an event file of `tensorboard`."""
    return get(f"training-runs/{part(pk)}/metric-file/", **{"as": kind})


def check_adapter(
    adapter: str, config: Path, header: Path, size: int, *, fold: bool = False, confirm_base: str = ""
) -> Call[Json]:
    """Check an adapter before its upload; `header` holds the first bytes of weights of `size` bytes."""
    fields = {"size": str(size), "fold": str(fold).lower(), "confirm_base": confirm_base}
    files = {"adapter_config": config, "header": header}
    return Call("POST", f"adapters/{part(adapter)}/versions/check/", fields, files=files)


def push(adapter: str, folder: File, *, fold: bool = False, **fields: str) -> Call[Version]:
    """Publish the PEFT folder as the adapter's next version. Fields: keep, confirm_base, source_sha256, conversions."""
    names = {"adapter_model": "adapter_model.safetensors", "adapter_config": "adapter_config.json"}
    files = {field: Path(folder) / name for field, name in names.items()}
    path = f"adapters/{part(adapter)}/versions/"
    call: Call[Version] = Call("POST", path, {"fold": str(fold).lower(), **fields}, files=files)
    return following(call, lambda created: version(adapter, created["number"]))


def version(adapter: str, number: int) -> Call[Version]:
    """Read a version."""
    return get(f"adapters/{part(adapter)}/versions/{number}/")


def download(adapter: str, number: int) -> Call[bytes]:
    """Download the version's files as they were published, as a ZIP."""
    return get(f"adapters/{part(adapter)}/versions/{number}/download/")


def dossier(adapter: str, number: int) -> Call[Json]:
    """Read a version's dossier."""
    return get(f"adapters/{part(adapter)}/versions/{number}/dossier/")


def evaluate(project: str, version: str, dataset: int | None = None, **fields: Any) -> Call[Evaluation]:
    """Queue an evaluation of the version with this served name, on a dataset or on what the fields name.

    Fields: against, prompts, pattern, task, variant.
    """
    data = {} if dataset is None else {"dataset": dataset}
    call = post("evaluations/", project=project, version=version, **data, **fields)
    return following(call, lambda created: evaluation(created["id"]))


def evaluations(**filters: str) -> Call[Page[Evaluation]]:
    """List evaluations, newest first.

    Filters: project, version, against, dataset, status, created_after, created_before.
    """
    return get("evaluations/", page_size="200", **filters)


def evaluation(pk: str) -> Call[Evaluation]:
    """Read an evaluation."""
    return get(f"evaluations/{part(pk)}/")


def ask_blindly(adapter: str, versions: Sequence[int], prompts: Sequence[str], **fields: Any) -> Call[list[BlindTest]]:
    """Send each prompt to every version, for people to vote on the answers without knowing the version.

    Fields: max_tokens.
    """
    return post("blind-tests/", adapter=adapter, versions=list(versions), prompts=list(prompts), **fields)


def blind_tests(adapter: str) -> Call[Page[BlindTest]]:
    """List blind tests with their votes, newest first."""
    return get("blind-tests/", adapter=adapter)


def approvals(**filters: str) -> Call[Page[Approval]]:
    """List requests for signatures, newest first. Filters: project, status, kind, alias, rollout.

    People sign them on the page of approvals; no token can.
    """
    return get("approvals/", **filters)


def history(alias: str, at: str = "") -> Call[list[Move]]:
    """List every move of the alias, or with a time the move that was in effect then."""
    return get(f"aliases/{part(alias)}/history/", **({"at": at} if at else {}))


def alias(name: str) -> Call[Alias]:
    """Read an alias."""
    return get(f"aliases/{part(name)}/")


def create_alias(project: str, name: str, cluster: str, version: str, policy: Json) -> Call[Alias]:
    """Create a public name that serves a version."""
    return post("aliases/", project=project, name=name, cluster=cluster, version=version, policy=policy)


def set_policy(alias: str, policy: Json) -> Call[Alias]:
    """Replace an alias' policy."""
    return Call("PATCH", f"aliases/{part(alias)}/", {"policy": policy})


def rollouts(alias: str, **filters: str) -> Call[Page[Rollout]]:
    """List the rollouts of an alias, `compliance` or `project.compliance`, newest first.

    Filters: project, candidate, stable, status, created_after, created_before.
    """
    project, _, name = alias.rpartition(".")
    return get("rollouts/", alias=name, **({"project": project} if project else {}), **filters)


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
    call = post("rollouts/", alias=alias, candidate=candidate, reason=reason, **plan)
    return following(call, lambda opened: rollout(opened["id"]))


def moved(rollout: Rollout, verb: str, reason: str) -> Call[Rollout]:
    """Return the call of a verb of a rollout; the server refuses it if the rollout has changed since it was read."""
    path = f"rollouts/{part(rollout['id'])}/"
    call = post(f"{path}{verb}/", reason=reason, expected_generation=rollout["generation"])
    return following(call, lambda _: get(path))


def start(rollout: Rollout, reason: str) -> Call[Rollout]:
    """Start a draft, if nobody has changed it since it was read."""
    return moved(rollout, "start", reason)


def pause(rollout: Rollout, reason: str) -> Call[Rollout]:
    """Send everybody to the stable version until the rollout is resumed."""
    return moved(rollout, "pause", reason)


def resume(rollout: Rollout, reason: str) -> Call[Rollout]:
    """Go on with a paused rollout: the same share, and everybody on the side that they had."""
    return moved(rollout, "resume", reason)


def approve(rollout: Rollout, reason: str) -> Call[Rollout]:
    """Approve the step with which the rollout waits for a person: the next one begins, or after the last the promotion.

    This is no signature. What a protected alias needs is signed by people on the page of approvals.
    """
    is_last = rollout["step"] + 1 >= len(rollout["steps"])
    return moved(rollout, "promote" if is_last else "advance", reason)


def cancel(rollout: Rollout, reason: str) -> Call[Rollout]:
    """End a rollout that is not promoted: everybody gets the stable version again. A draft is discarded."""
    return moved(rollout, "discard", reason) if rollout["status"] == "draft" else roll_back(rollout, reason)


def promote(rollout: Rollout, reason: str) -> Call[Rollout]:
    """Let the candidate serve all traffic, if nobody has changed the rollout since it was read."""
    return moved(rollout, "promote", reason)


def roll_back(rollout: Rollout, reason: str) -> Call[Rollout]:
    """Let the stable version serve all traffic again, even after the promotion."""
    return post(f"rollouts/{part(rollout['id'])}/rollback/", reason=reason)


def verify_audit(project: str) -> Call[Verdict]:
    """Verify a project's audit trail."""
    return get("audit/verify/", project=project)


def export_audit(project: str, kind: str = "jsonl") -> Call[bytes]:
    """Export a project's audit trail as `jsonl`, `csv` or `bundle`, a ZIP file that an outsider can verify."""
    return get("audit/export/", project=project, **{"as": kind})
