"""Tasks of lm-eval that an operator offers, and the file for the child that runs one of them on a served version."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

from django.conf import settings
from django.utils.timezone import now

from adapterhub.accounts import tokens
from adapterhub.accounts.models import ApiToken
from adapterhub.core.errors import Invalid
from adapterhub.core.tenancy import Scope
from registry.models import AdapterVersion, Replica
from training.models.job import WORKER, GpuJob

NAME = re.compile(r"[\w.\-]{1,100}")
DECLARED = re.compile(r"^(?:task|group):[ \t]*[\"']?(\w[\w.\-]*)", re.MULTILINE)
# A token ends with its job; this is for a worker that dies.
TOKEN_LIVES = timedelta(days=1)
UNKNOWN_LENGTH = 2048


def offered() -> list[str]:
    """Return the names of the tasks in the operator's folder, sorted; empty without a folder."""
    if not settings.LM_EVAL_TASKS:
        return []
    files = [path for kind in ("*.yaml", "*.yml") for path in Path(settings.LM_EVAL_TASKS).rglob(kind)]
    return sorted({name for path in files for name in DECLARED.findall(path.read_text(errors="replace"))})


def require_task(name: str) -> None:
    """Raise Invalid for a task that is not offered, or if lm-eval is not installed."""
    if not settings.LM_EVAL_TASKS:
        raise Invalid(
            "No lm-eval tasks are offered here: an operator sets ADAPTERHUB_LM_EVAL_TASKS to a folder of them.",
            field="task",
            code="no_lm_eval",
        )
    if not settings.LM_EVAL_PYTHON and importlib.util.find_spec("lm_eval") is None:
        raise Invalid(
            "lm-eval is not installed: an operator installs lm-eval[api], or sets ADAPTERHUB_LM_EVAL_PYTHON to the "
            "interpreter of an environment that has it.",
            field="task",
            code="no_lm_eval",
        )
    names = offered()
    if name not in names or not NAME.fullmatch(name):
        known = f"there are {', '.join(names)}" if names else "its folder has no task"
        raise Invalid(f"{name!r} is no task of this installation: {known}.", field="task", code="unknown_task")


def write_file(job: GpuJob, version: AdapterVersion, task: str, folder: Path, *, is_chat: bool) -> Path:
    """Write the child's file into the folder and return its path.

    It contains a new token of scope infer for this job alone, readable only by this user; earlier tokens of the job are
    revoked.
    """
    revoke_tokens(job)
    expires_at = now() + TOKEN_LIVES
    _, token = tokens.create(job.project, token_name(job), [Scope.INFER], by=WORKER, expires_at=expires_at)
    record: dict[str, Any] = {
        "base_model": str(job.base_model.folder),
        "python": settings.LM_EVAL_PYTHON or sys.executable,
        "tasks": str(settings.LM_EVAL_TASKS),
        "task": task,
        "model": version.served_name,
        "router": settings.ROUTER_URL,
        "token": token,
        "max_length": max_length(job),
        "chat": is_chat,
        "served_within_s": int(settings.LOAD_DEADLINE.total_seconds()),
        "events": str(folder / "events.jsonl"),
        "output": str(folder / "output"),
    }
    path = folder / "lm_eval.json"
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as stream:
        json.dump(record, stream)
    return path


def max_length(job: GpuJob) -> int:
    """Return the most tokens of a request: what every engine of the base model that serves the project takes.

    Where no engine reports that, it is the context length of the base model, else UNKNOWN_LENGTH.
    """
    lengths = Replica.objects.lengths(job.base_model, job.project)
    return int(lengths[0] if lengths else job.base_model.config.get("max_position_embeddings") or UNKNOWN_LENGTH)


def token_name(job: GpuJob) -> str:
    """Return the name of the job's token."""
    return f"evaluation {job.pk}"


def revoke_tokens(job: GpuJob) -> None:
    """Revoke and record the tokens with which the job's attempts ask the router, unless they are revoked already.

    Called at the end of the job, and before an attempt gets its own.
    """
    for token in ApiToken.objects.filter(project=job.project, name=token_name(job), revoked_at=None):
        tokens.revoke(token, by=WORKER, reason="the evaluation ended")
