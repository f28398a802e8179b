"""Pages of datasets, rank analyses and compressions: check the caller's scope, act, render."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_POST

from adapterhub.api.listing import Listing
from adapterhub.api.pages import (
    accepts_files,
    allowed,
    allowed_somewhere,
    followed,
    reason_in,
    reloaded_after,
    visible_or_404,
    visible_rows,
)
from adapterhub.api.permissions import actor_of, require_scope, scopes_in
from adapterhub.audit.access_log import observe
from adapterhub.audit.tags import Tag
from adapterhub.charts import heat_map, histogram
from adapterhub.core.errors import DomainError
from adapterhub.core.tenancy import Scope
from adapterhub.jobs.models import JobStatus
from registry.pages.adapters import find_version
from registry.pages.forms import cleaned
from training.datasets.preferences import kind_of
from training.datasets.remote import Source
from training.datasets.uploads import copied
from training.models import Compression, Dataset, RankAnalysis
from training.models.dataset import DatasetStatus
from training.pages.curves import FRAME
from training.pages.forms import PART_HELP, AnalysisForm, BudgetForm, RenderingForm, UploadForm
from training.pages.plan_comparison import comparable
from training.pages.race_chart import race_of
from training.pages.rate_advice import rate_advice
from training.pages.retention import keeping
from training.tars.allocation import cost

# Rows of the score table that are shown without a click.
SHOWN_MODULES = 15
MAIN_FIELDS = ("base_model", "dataset", "preset", "rank_min", "rank_max", "quantum", "samples")


@login_required
@accepts_files
def datasets(request: HttpRequest) -> HttpResponse:
    """List the datasets; a POST uploads another and redirects to it.

    Raises NotAllowed for the POST of a person who has scope train in no project.
    """
    may_train = allowed(request, Scope.TRAIN).filter(archived_at=None)
    if request.method == "POST":
        may_train = allowed_somewhere(request, Scope.TRAIN)
    form = UploadForm(request.POST or None, request.FILES or None, projects=may_train)
    if request.method == "POST" and form.is_valid():
        try:
            return redirect("dataset", pk=upload(request, form.cleaned_data).pk)
        except DomainError as error:
            form.add_error(error.field if error.field in form.fields else "file", error.detail)
            form.broken = getattr(error, "lines", [])
    listing = Listing(
        request,
        visible_rows(request, Dataset.objects.select_related("project")),
        search=("name", "digest"),
        sorts={"name": "name", "rows": "rows", "added": "created_at"},
        choices={"status": DatasetStatus.choices},
    )
    context = {**listing.context(), "form": form, "may_train": may_train.exists()}
    return render(request, "training/datasets.html", context, status=422 if form.errors else 200)


def upload(request: HttpRequest, fields: dict[str, Any]) -> Dataset:
    """Store the uploaded file as a dataset, or create one whose source a worker reads; return it.

    Raises NotAllowed without scope train, and as `Dataset.create` and `Dataset.bring` do.
    """
    require_scope(request, fields["project"], Scope.TRAIN)
    choices = {name: fields[name] for name in ("format", "encoding", "escape", "mapping")}
    if fields["source"]:
        source = Source(fields["source"], fields["revision"], fields["config"], fields["split"])
        return Dataset.bring(
            project=fields["project"], source=source, name=fields["name"], by=actor_of(request), **choices
        )
    file = fields["file"]
    with copied(file) as copy:
        return Dataset.create(
            project=fields["project"],
            name=fields["name"] or Path(file.name).stem,
            file=copy,
            filename=file.name,
            by=actor_of(request),
            **choices,
        )


@login_required
def dataset(request: HttpRequest, pk: int) -> HttpResponse:
    """Show a dataset's first rows; with a base model in the query, as a training on it reads them.

    The view is recorded as a read of the data. A poll by htmx gets no content, only the word to reload the page once
    the dataset has another status. Raises Http404 if the person does not see the dataset.
    """
    viewed = visible_or_404(request, Dataset.objects.select_related("project"), pk=pk)
    if request.headers.get("HX-Request"):
        return reloaded_after(request, viewed.status)
    form = RenderingForm(request.GET if "base_model" in request.GET else None)
    observe(Tag.DATASET_READ, by=actor_of(request), project=viewed.project, resource=request.path)
    context = {"dataset": viewed, "form": form, **read_by_a_training(viewed, form), **keeping(request, viewed)}
    if "rendered" not in context:
        context["rows"] = [with_sides(row) for row in viewed.preview(8)]
    return render(request, "training/dataset.html", context)


def with_sides(row: dict[str, Any]) -> dict[str, Any]:
    """Return a preference row in the form of the page, {sides: [{name, turns}]}; other rows unchanged."""
    if kind_of(row) == "answers":
        return row
    names = {"completion": "good answer" if row.get("label") else "bad answer"}
    sides = []
    for name in ("prompt", "completion", "chosen", "rejected"):
        if name in row:
            turns = row[name] if isinstance(row[name], list) else [{"content": row[name]}]
            counted = [name != "prompt" and turn.get("role", "assistant") == "assistant" for turn in turns]
            marked = [
                {**turn, "trains": trains, "speaker": f"{turn['role']}: " if "role" in turn else ""}
                for turn, trains in zip(turns, counted, strict=True)
            ]
            sides.append({"name": names.get(name, name), "turns": marked})
    return {"sides": sides}


def read_by_a_training(dataset: Dataset, form: RenderingForm) -> dict[str, Any]:
    """Return the context for showing the rows as a training reads them; {} without a valid form, or if that fails.

    If it fails, an error is added to the form.
    """
    if not form.is_valid():
        return {}
    try:
        chosen = form.cleaned_data
        rendering = dataset.rendered(chosen["base_model"], chosen["max_length"], form.reading)
    except DomainError as error:
        form.add_error(error.field if error.field in form.fields else None, error.detail)
        return {}
    lengths = rendering["lengths"]
    return {**rendering, "histogram": histogram(FRAME, lengths["bins"], lengths["step"], rendering["max_length"])}


@login_required
def analyses(request: HttpRequest) -> HttpResponse:
    """List the rank analyses that the person may see."""
    queryset = RankAnalysis.objects.select_related("dataset", "base_model").defer("plan")
    listing = Listing(
        request,
        visible_rows(request, queryset),
        search=("dataset__name", "base_model__slug"),
        sorts={"requested": "created_at"},
        choices={"status": JobStatus.choices},
    )
    return render(request, "training/analyses.html", listing.context())


@login_required
def new_analysis(request: HttpRequest) -> HttpResponse:
    """Show the form of a rank analysis; a POST of a valid form queues the analysis and redirects to it.

    Raises NotAllowed for people with scope train in no project.
    """
    initial = {name: request.GET[name] for name in ("dataset", "base_model") if name in request.GET}
    form = AnalysisForm(request.POST or None, projects=allowed_somewhere(request, Scope.TRAIN), initial=initial)
    if request.method == "POST" and form.is_valid():
        try:
            return redirect("rank-analysis", pk=analyse(request, form).pk)
        except DomainError as error:
            field = "uniform_rank" if error.field == "budget" else error.field.removeprefix("settings.")
            form.add_error(field if field in form.fields else None, error.detail)
    return render(request, "training/new_analysis.html", {"form": form}, status=422 if form.errors else 200)


def analyse(request: HttpRequest, form: AnalysisForm) -> RankAnalysis:
    """Queue the analysis that the form describes and return it.

    Raises NotAllowed without scope train, and as `RankAnalysis.launch` does.
    """
    fields = {name: form.cleaned_data[name] for name in MAIN_FIELDS}
    project = fields["dataset"].project
    require_scope(request, project, Scope.TRAIN)
    budget = {"uniform_rank": form.cleaned_data["uniform_rank"]}
    return RankAnalysis.launch(project=project, budget=budget, settings=form.settings(), by=actor_of(request), **fields)


@login_required
def analysis(request: HttpRequest, pk: str) -> HttpResponse:
    """Show a rank analysis with its plan; a budget in the query shows the plan for that budget.

    A poll by htmx gets only the state of the job. Raises Http404 if the person does not see it.
    """
    context = context_of_plan(request, pk)
    viewed = context["job"]
    context["others"] = comparable(viewed) if viewed.plan else []
    return followed(request, "training/analysis.html", "training/_job_state.html", context, viewed.status)


@login_required
def plan(request: HttpRequest, pk: str) -> HttpResponse:
    """Render the part of the analysis' page that changes with the budget slider, for the budget in the query.

    Raises Http404 if the person does not see the analysis.
    """
    return render(request, "training/_plan.html", context_of_plan(request, pk))


def context_of_plan(request: HttpRequest, pk: str) -> dict[str, Any]:
    """Return the context of the analysis' page, with the plan for the query's budget.

    Raises Http404 if the person does not see the analysis.
    """
    viewed = visible_or_404(request, RankAnalysis.objects.select_related("project", "dataset", "base_model"), pk=pk)
    form = BudgetForm(request.GET if "uniform_rank" in request.GET else None)
    may_train = Scope.TRAIN in scopes_in(request, viewed.project)
    return {"job": viewed, "may_train": may_train, "part_help": PART_HELP, **planned(viewed, form)}


def planned(analysis: RankAnalysis, form: BudgetForm) -> dict[str, Any]:
    """Return the template context of the analysis' plan, or of the plan for the form's budget.

    {} if there is no plan yet. For a budget that cannot be met it is that of the analysis' own plan, with a `refusal`.
    """
    if not analysis.plan:
        return {}
    slider = slider_of(analysis)
    rank = form.cleaned_data["uniform_rank"] if form.is_valid() else slider["value"]
    if rank == slider["value"]:
        return {**plan_context(analysis.plan), "slider": slider}
    try:
        other = analysis.reallocate({"uniform_rank": rank})
    except DomainError as error:
        return {**plan_context(analysis.plan), "slider": slider, "refusal": error.detail}
    return {**plan_context(other), "slider": {**slider, "value": rank}, "other_budget": rank}


def slider_of(analysis: RankAnalysis) -> dict[str, int]:
    """Return the range of the budget slider in uniform ranks, and the one nearest to the analysis' own budget.

    It is {least, most, value}. Raises Invalid before the analysis has a plan.
    """
    least, most = analysis.uniform_range()
    plan = analysis.require_plan()
    each = sum(cost(module["shape"]) for module in plan["modules"])
    return {"least": least, "most": most, "value": round(plan["budget"]["parameters"] / each)}


def plan_context(plan: dict[str, Any]) -> dict[str, Any]:
    """Return the plan with its heat map, its learning rate, and its modules by score.

    `first` are the first SHOWN_MODULES modules, `rest` the others.
    """
    modules = sorted(plan["modules"], key=lambda module: -(module["score"] or 0))
    heat = heat_map({module["name"]: module["rank"] for module in modules})
    parts = {"first": modules[:SHOWN_MODULES], "rest": modules[SHOWN_MODULES:]}
    return {"plan": plan, "heat": heat, "rate": rate_advice(plan), "race": race_of(plan), **parts}


@login_required
@require_POST
def cancel_analysis(request: HttpRequest, pk: str) -> HttpResponse:
    """Cancel a rank analysis and redirect to it.

    Raises Http404 if the person does not see it, and NotAllowed without scope train.
    """
    cancelled = visible_or_404(request, RankAnalysis.objects.select_related("project"), pk=pk)
    require_scope(request, cancelled.project, Scope.TRAIN)
    cancelled.cancel(by=actor_of(request), reason=reason_in(request))
    messages.success(request, f"The analysis is {cancelled.status}.")
    return redirect("rank-analysis", pk=pk)


@login_required
@require_POST
def compress(request: HttpRequest, slug: str, number: int) -> HttpResponse:
    """Queue a job that makes a stored version smaller, as a new version, and redirect to the job.

    The budget is a uniform rank. Raises Http404 if the person does not see the version, NotAllowed without scope train,
    Invalid for a budget out of its limits, and as `Compression.launch` does.
    """
    version = find_version(request, slug, number)
    require_scope(request, version.project, Scope.TRAIN)
    budget = dict(cleaned(BudgetForm(request.POST)))
    return redirect("compression", pk=Compression.launch(version, budget, by=actor_of(request)).pk)


def find_compression(request: HttpRequest, pk: str) -> Compression:
    """Return the compression in the URL. Raises Http404 if the person does not see it."""
    queryset = Compression.objects.select_related(
        "project", "dataset", "source__adapter__project", "version__adapter__project"
    )
    job: Compression = visible_or_404(request, queryset, pk=pk)
    return job


@login_required
def compression(request: HttpRequest, pk: str) -> HttpResponse:
    """Show a compression and its result; a poll by htmx gets only the changing part.

    Raises Http404 if the person does not see it.
    """
    viewed = find_compression(request, pk)
    context = {"job": viewed, "may_train": Scope.TRAIN in scopes_in(request, viewed.project)}
    return followed(request, "training/compression.html", "training/_compression_state.html", context, viewed.status)


@login_required
@require_POST
def cancel_compression(request: HttpRequest, pk: str) -> HttpResponse:
    """Cancel a compression and redirect to it.

    Raises Http404 if the person does not see it, and NotAllowed without scope train.
    """
    cancelled = find_compression(request, pk)
    require_scope(request, cancelled.project, Scope.TRAIN)
    cancelled.cancel(by=actor_of(request), reason=reason_in(request))
    messages.success(request, f"The compression is {cancelled.status}.")
    return redirect("compression", pk=pk)
