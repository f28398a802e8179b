"""A run's specification as REST body, YAML file, curl request and command, and the comparison of two runs."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any

import yaml
from django.db.models import Model

from adapterhub.accounts.models import Project
from adapterhub.core.errors import Invalid
from registry.models import Adapter
from training.models import Dataset, RankAnalysis, TrainingRun
from training.models.mixture import Mixed

Body = dict[str, Any]


def of_project(model: type[Model], project: Project, field: str, **identity: Any) -> Any:
    """Return the project's object of this model with the given slug or primary key.

    `identity` is one keyword, `slug` or `pk`. Raises Invalid that names the request's `field` if there is none.
    """
    record = model._default_manager.filter(project=project, **identity).first()
    if record is None:
        value = next(iter(identity.values()))
        raise Invalid(f"There is no {field} {value!s} in {project}.", field=field, code=f"unknown_{field}")
    return record


def arguments(body: Mapping[str, Any], project: Project) -> dict[str, Any]:
    """Convert a validated request body to the arguments of `launch_run`. Raises Invalid that names the field."""
    adapter = of_project(Adapter, project, "adapter", slug=body["adapter"])
    if body.get("base_model", adapter.base_model.slug) != adapter.base_model.slug:
        raise Invalid(f"{adapter} is an adapter of {adapter.base_model}.", field="base_model", code="wrong_base")
    analysis, validation = body.get("rank_analysis"), body.get("validation_dataset")
    return {
        "adapter": adapter,
        "dataset": of_project(Dataset, project, "dataset", pk=body["dataset"]),
        "rank_analysis": analysis and of_project(RankAnalysis, project, "rank_analysis", pk=analysis),
        "budget": dict(body["budget"]) if body.get("budget") else None,
        "start_values": body.get("start_values"),
        "hyperparameters": body.get("hyperparameters") or {},
        "method": body["method"],
        "priority": body.get("priority") or 0,
        "prompts": dict(body.get("prompts") or {}),
        "validation_dataset": validation and of_project(Dataset, project, "validation_dataset", pk=validation),
        "mixture": [
            Mixed(of_project(Dataset, project, "dataset", pk=part["dataset"]), part["weight"])
            for part in body.get("mixture") or []
        ],
    }


def body_of(run: TrainingRun) -> Body:
    """Return the request body that would queue the same run."""
    body = {
        "project": run.project.slug,
        "adapter": run.adapter.slug,
        "base_model": run.base_model.slug,
        "dataset": run.dataset_id,
        "method": str(run.method),
        "priority": run.priority,
        "hyperparameters": run.effective_hyperparameters(),
    }
    if run.rank_analysis_id:
        body |= {"rank_analysis": str(run.rank_analysis_id), "start_values": run.takes_start_values}
    chosen = {
        "budget": run.budget,
        "prompts": run.prompts,
        "validation_dataset": run.validation_dataset_id,
        "mixture": run.mixture,
    }
    return {**body, **{name: value for name, value in chosen.items() if value}}


def twins(run: TrainingRun, origin: str) -> dict[str, str]:
    """Return the run as a YAML file, a curl request and a shell command that would queue the same run.

    They are texts by the keys yaml, curl and command. `origin` is this installation's URL.
    """
    body = body_of(run)
    curl = f"""curl -X POST {origin}/api/v1/training-runs/ \\
  -H "Authorization: Bearer $TOKEN" -H "Content-Type: application/json" \\
  -d {shlex.quote(json.dumps(body))}"""
    command = f"python manage.py train run.yaml --user {shlex.quote(str(run.created_by or 'NAME'))}"
    return {"yaml": yaml.safe_dump(body, sort_keys=False), "curl": curl, "command": command}


def differences(one: TrainingRun, other: TrainingRun) -> list[dict[str, Any]]:
    """Return the requested settings in which two runs differ, as {name, this, other}.

    `this` is the value of `one`. A value is None where that run does not have the setting.
    """
    first, second = flat(body_of(one)), flat(body_of(other))
    names = [*first, *(name for name in second if name not in first)]
    return [
        {"name": name, "this": first.get(name), "other": second.get(name)}
        for name in names
        if first.get(name) != second.get(name)
    ]


def flat(body: Body, prefix: str = "") -> Body:
    """Return nested settings in one dictionary, by dotted names."""
    values: Body = {}
    for name, value in body.items():
        values |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return values
