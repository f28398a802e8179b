"""The checklist of a new installation: from a project to a served alias, with the form for each step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from django.contrib.auth.decorators import login_required
from django.db.models import Exists, QuerySet
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import reverse

from adapterhub.accounts.models import User
from adapterhub.api.pages import allowed, visible_rows
from adapterhub.core.tenancy import Scope
from registry.models import Adapter, AdapterVersion, Alias, BaseModel, BaseModelStatus, Cluster, Replica
from training.models import Dataset, TrainingRun

Facts = dict[str, bool]
MAY = (Scope.ADMIN.value, Scope.OPERATE.value, Scope.PUBLISH.value, Scope.TRAIN.value)


@dataclass(frozen=True)
class Step:
    """A step of the checklist; `state` says how far it has come while it is not done, "" if there is nothing to say.

    `route` is the name of the form's URL, `action` the text of the link to it. `may` is True if this person may do it;
    otherwise somebody else must.
    """

    title: str
    purpose: str
    is_done: bool
    may: bool
    route: str
    action: str
    state: str = ""

    @property
    def url(self) -> str:
        """The URL of the step's form."""
        return reverse(self.route)


@login_required
def first_steps(request: HttpRequest) -> HttpResponse:
    """Show the checklist, even after everything is done."""
    return render(request, "training/first_steps.html", checklist(request))


def checklist(request: HttpRequest) -> dict[str, Any]:
    """Return the steps in order, as far as this person can see them, and `next_step`, the first that is not done.

    `next_step` is None if all are done.
    """
    facts = facts_of(request)
    steps = [project_step(facts), *engine_steps(facts), *training_steps(facts), serving_step(facts)]
    return {"steps": steps, "next_step": next((step for step in steps if not step.is_done), None)}


def facts_of(request: HttpRequest) -> Facts:
    """Return by name whether the person can see an object of each kind, and has each scope in some project.

    All are read in one query. `installation` is True for a superuser.
    """
    rows: dict[str, QuerySet[Any]] = {
        "project": allowed(request, Scope.READ),
        "base_model": BaseModel.objects.ready(),
        "base_model_checking": BaseModel.objects.filter(status=BaseModelStatus.CHECKING),
        "cluster": visible_rows(request, Cluster.objects.all()),
        "replica": visible_rows(request, Replica.objects.filter(is_healthy=True), "cluster__project"),
        "dataset": visible_rows(request, Dataset.objects.ready()),
        "adapter": visible_rows(request, Adapter.objects.live()),
        "run": visible_rows(request, TrainingRun.objects.active()),
        "version": visible_rows(request, AdapterVersion.objects.ready(), "adapter__project"),
        "alias": visible_rows(request, Alias.objects.all()),
        **{scope: allowed(request, scope).filter(archived_at=None) for scope in MAY},
    }
    there = {name: Exists(queryset) for name, queryset in rows.items()}
    facts = cast(Facts, User.objects.filter(pk=cast(User, request.user).pk).values(**there).get())
    return {**facts, "installation": bool(request.user.is_superuser)}


def project_step(facts: Facts) -> Step:
    """Return the step that creates a project."""
    return Step(
        "A project",
        "Everything but base models belongs to one: data, adapters, aliases, members, the audit trail.",
        facts["project"],
        facts["installation"],
        "new-project",
        "Create a project",
    )


def engine_steps(facts: Facts) -> list[Step]:
    """Return the steps that register a base model and the engines that serve it."""
    is_checking, is_named = facts["base_model_checking"], facts["cluster"]
    return [
        Step(
            "A base model",
            "The small model that comes with AdapterHub, a model of the hub, or the one that a running engine serves.",
            facts["base_model"],
            facts["installation"] or facts["admin"],
            "base-models" if is_checking else "new-base-model",
            "See its check" if is_checking else "Add a base model",
            "It is being checked." if is_checking else "",
        ),
        Step(
            "Running engines",
            "A cluster is engines that serve the base model; the engines that started with AdapterHub are proposed.",
            facts["replica"],
            facts["operate"],
            "clusters" if is_named else "new-cluster",
            "See the cluster" if is_named else "Name the engines",
            "No replica has answered yet." if is_named else "",
        ),
    ]


def training_steps(facts: Facts) -> list[Step]:
    """Return the steps from data to a trained version."""
    is_training = facts["run"]
    return [
        Step(
            "Data",
            "A file of examples; every line is checked, and a part is held out to measure with.",
            facts["dataset"],
            facts["train"],
            "datasets",
            "Add a dataset",
        ),
        Step(
            "An adapter",
            "The line of work that is trained: it has a name, and each training publishes a version of it.",
            facts["adapter"],
            facts["publish"],
            "new-adapter",
            "Create an adapter",
        ),
        Step(
            "A training",
            "It goes on when the page is closed, and ends in a version with its loss on the held-out part.",
            facts["version"],
            facts["train"],
            "training-runs" if is_training else "new-training-run",
            "See the run" if is_training else "Train a version",
            "A run is on its way." if is_training else "",
        ),
    ]


def serving_step(facts: Facts) -> Step:
    """Return the step that gives a version its public name."""
    return Step(
        "A public name",
        "Applications send an alias as model. From then on a rollout moves it from version to version.",
        facts["alias"],
        facts["operate"],
        "new-alias",
        "Serve a version",
    )
