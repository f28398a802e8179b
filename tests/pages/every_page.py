"""The address of every page that a person can open, by the name of its route."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

from django.urls import get_resolver, reverse

from adapterhub.accounts.models import ApiToken
from adapterhub.audit.models import AuditEvent
from registry.models import AdapterVersion, Approval
from tests.builders.walk import POST_ONLY, PROGRAMS, PUBLIC, routes
from tests.pages.realistic import ANSWERS_BY_PROMPT, World
from training.models import Compression, Dataset, Evaluation

# Parts of a page, for htmx.
ESTIMATE = (
    "base_model=smollm2-135m&device_gb=24&devices=1&rank=16&batch_size=4&max_length=2048&galore_rank=64&recompute=on"
)
PARTS = {"rank-analysis-plan"}
# Alice administers a project, not the installation.
OF_ADMINISTRATORS = {"new-project", "people"}


def pages_to_cover() -> set[str]:
    names = {name for name, _, _ in routes(get_resolver().url_patterns)}
    return {name for name in names - PUBLIC - POST_ONLY - PARTS - OF_ADMINISTRATORS if not name.startswith(PROGRAMS)}


def every_page(world: World, version: AdapterVersion, dataset: Dataset) -> dict[str, str]:
    """Of the world's newest things; what is read from the store is the stored version and dataset."""
    newest, run = world.aliases[0].version, world.runs[-1]
    compared = world.adapters[0]
    numbers = list(compared.versions.values_list("number", flat=True)[:3])
    compression = Compression.launch(version, {"uniform_rank": 2}, by=world.by)
    evaluation = Evaluation.launch(version, dataset=dataset, by=world.by)
    args: dict[str, list[Any]] = {
        "project": [world.project.slug],
        "base-model": [newest.adapter.base_model.slug],
        "edit-adapter": [newest.adapter.slug],
        "alias-policy": [world.aliases[0].name],
        "adapter": [newest.adapter.slug],
        "version": [newest.adapter.slug, newest.number],
        "reduce-version": [newest.adapter.slug, newest.number],
        "compare": [compared.slug, numbers[0]],
        "dossier": [version.adapter.slug, version.number],
        "alias": [world.aliases[0].name],
        "responsibility": [world.aliases[0].name],
        "rollout": [world.rollouts[0].pk],
        "cluster": [world.clusters[0].slug],
        "approval": [Approval.objects.filter(project=world.project)[0].pk],
        "dataset": [dataset.pk],
        "training-run": [run.pk],
        "compare-training-runs": [run.pk],
        "rank-analysis": [world.analyses[0].pk],
        "compare-plans": [world.analyses[0].pk],
        "upload-version": [newest.adapter.slug],
        "evaluate-version": [newest.adapter.slug, newest.number],
        "evaluation": [evaluation.pk],
        "compression": [compression.pk],
        "token": [ApiToken.issue(name="ci", project=world.project, scopes=["read"], created_by=world.by.user)[0].pk],
        "audit-event": [AuditEvent.objects.filter(project=world.project, tag="rollout:created")[0].pk],
    }
    live = world.aliases[0]
    query = urlencode({"models": live.name, "prompt": next(iter(ANSWERS_BY_PROMPT)), "max_tokens": 64})
    queries = {
        "answers": f"?id={world.responses[0].pk}",
        "playground": f"?{query}",
        "new-training-run": f"?clone={world.runs[0].pk}",
        "estimates": f"?{ESTIMATE}",
        "compare": "?" + "&".join(f"to={number}" for number in numbers[1:]),
        "compare-plans": f"?to={world.analyses[1].pk}",
        "compare-training-runs": f"?to={world.runs[0].pk}",
    }
    return {name: reverse(name, args=args.get(name, [])) + queries.get(name, "") for name in sorted(pages_to_cover())}
