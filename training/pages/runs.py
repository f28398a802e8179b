"""Pages of training runs: the list, the form with its preflight check, and a run's progress."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_POST

from adapterhub.api.listing import Listing
from adapterhub.api.pages import allowed_somewhere, followed, reason_in, visible_or_404, visible_rows
from adapterhub.api.permissions import actor_of, require_scope, scopes_in
from adapterhub.core.errors import DomainError
from adapterhub.core.tenancy import Scope
from adapterhub.jobs.models import JobStatus
from registry.models import Adapter, without_bodies
from training.models import RunLog, TrainingRun
from training.models.hyperparameters import TABLE
from training.pages.curves import curves, losses
from training.pages.fields import is_switch
from training.pages.forms import RunForm
from training.pages.retention import form_for
from training.planning import estimator_inputs, preflight
from training.runs import specification
from training.runs.launch import launch_run

OTHERS = 20
LOG_TAIL = 8_000
OFFERED = ("adapter", "dataset", "rank_analysis", "uniform_rank")


@login_required
def runs(request: HttpRequest) -> HttpResponse:
    """List the training runs that the person may see."""
    queryset = without_bodies(
        TrainingRun.objects.select_related("adapter", "dataset", "version__adapter__project"), "version"
    )
    listing = Listing(
        request,
        visible_rows(request, queryset),
        search=("adapter__slug", "dataset__name", "message"),
        sorts={"requested": "created_at", "loss": "loss_after"},
        choices={"status": JobStatus.choices, "method": TrainingRun.Method.choices},
    )
    return render(request, "training/runs.html", listing.context())


@login_required
def new_run(request: HttpRequest) -> HttpResponse:
    """Show the form of a training run; a POST queues the run, or with `check` only shows its preflight check.

    An htmx request gets that check alone. Raises NotAllowed for people with scope train in no project.
    """
    projects = allowed_somewhere(request, Scope.TRAIN)
    form = RunForm(request.POST or None, projects=projects, initial=proposed(request))
    form.propose(request.GET.get("rank_analysis"))
    context = {"form": form, "has_adapters": Adapter.objects.filter(project__in=projects).exists()}
    if request.method == "POST" and form.is_valid():
        try:
            if "check" not in request.POST:
                return redirect("training-run", pk=launch(request, form).pk)
            context |= foreseen(request, form)
        except DomainError as error:
            form.add_error(error.field if error.field in form.fields else None, error.detail)
    if request.headers.get("HX-Request"):
        return render(request, "training/_foreseen.html", context)
    return render(request, "training/new_run.html", context, status=422 if form.errors else 200)


def proposed(request: HttpRequest) -> dict[str, Any]:
    """Return the form's initial values from the query: the fields of a run to `clone`, overridden by single fields.

    Raises Http404 for a run that the person does not see.
    """
    initial: dict[str, Any] = {name: request.GET[name] for name in OFFERED if name in request.GET}
    if "clone" not in request.GET:
        return initial
    past = visible_or_404(request, TrainingRun.objects.all(), pk=named(request.GET["clone"]))
    known = {name: value for name, value in past.hyperparameters.items() if name in TABLE}
    rank = (past.budget or {}).get("uniform_rank")
    return {
        "adapter": past.adapter_id,
        "dataset": past.dataset_id,
        "validation_dataset": past.validation_dataset_id,
        "mixture": past.mixture,
        "rank_analysis": past.rank_analysis_id,
        "method": past.method,
        "priority": past.priority,
        "prompts": past.prompts,
        "uniform_rank": rank,
        **known,
        **initial,
    }


def launch(request: HttpRequest, form: RunForm) -> TrainingRun:
    """Queue the run that the form describes and return it.

    Raises NotAllowed without scope train, and as `launch_run` does.
    """
    fields = form.cleaned_data
    require_scope(request, fields["adapter"].project, Scope.TRAIN)
    return launch_run(by=actor_of(request), anyway=fields["anyway"], **form.launch_arguments())


def foreseen(request: HttpRequest, form: RunForm) -> dict[str, Any]:
    """Return the preflight check, the adviser's ranking, and the file, request and command that launch the form's run.

    Raises NotAllowed without scope train, and Invalid for a run that cannot be planned.
    """
    fields = form.cleaned_data
    require_scope(request, fields["adapter"].project, Scope.TRAIN)
    run = TrainingRun.planned(by=actor_of(request), **form.launch_arguments())
    origin = f"{request.scheme}://{request.get_host()}"
    return {
        "preflight": preflight.check(run),
        "advice": advice_for(run, form),
        "twins": specification.twins(run, origin),
    }


def advice_for(run: TrainingRun, form: RunForm) -> dict[str, Any]:
    """Return the adviser's recommendation for the planned run on the largest known device.

    Raises Invalid for a base model whose shape the estimator does not know.
    """
    device = estimator_inputs.largest_device()
    shape = estimator_inputs.shape_of(run.base_model.config)
    on_gpu = device is None or device.kind == device.Kind.CUDA
    plan = estimator_inputs.plan_of(run.method, run.hyperparameters, on_gpu=on_gpu, parameters=run.planned_parameters())
    memory = device.memory_bytes if device else None
    situation = estimator_inputs.situation(shape, plan, memory, run.dataset, run.base_model, **form.stated())
    return estimator_inputs.advice(situation)


def named(text: str) -> UUID:
    """Parse the id of a run or an analysis from a query. Raises Http404."""
    try:
        return UUID(text)
    except ValueError:
        raise Http404 from None


def find(request: HttpRequest, pk: str | UUID) -> TrainingRun:
    """Return the run with this key. Raises Http404 if the person does not see it."""
    queryset = TrainingRun.objects.select_related(
        "project", "adapter", "dataset", "base_model", "version__adapter__project", "rank_analysis"
    )
    run: TrainingRun = visible_or_404(request, queryset, pk=pk)
    return run


@login_required
def run(request: HttpRequest, pk: str) -> HttpResponse:
    """Show a training run: progress, metrics, answers, log, and for the whole page its settings.

    A poll by htmx gets only the changing part. Raises Http404 if the person does not see it.
    """
    viewed = find(request, pk)
    scopes = scopes_in(request, viewed.project)
    rows = list(viewed.metrics.values_list("step", "values"))
    both = losses(rows, viewed.version.metrics.get("best_step") if viewed.version else None)
    context: dict[str, Any] = {
        "job": viewed,
        "losses": both,
        "curves": [each for each in curves(rows) if not (both and each["name"] in ("loss", "held_out_loss"))],
        "log": RunLog.tail(viewed, LOG_TAIL),
        "answers": list(viewed.answers.all()) if viewed.prompts else [],
        "may_train": Scope.TRAIN in scopes,
        "may_roll_out": Scope.OPERATE in scopes,
        "keeping": form_for(viewed, scopes),
    }
    if not request.headers.get("HX-Request"):
        context["hyperparameters"] = in_order(viewed.effective_hyperparameters())
        context["mixed"] = viewed.parts()[1:]
        near = (
            TrainingRun.objects.filter(project=viewed.project).exclude(pk=viewed.pk).select_related("adapter__project")
        )
        context["others"] = near[:OTHERS]
    return followed(request, "training/run.html", "training/_run_state.html", context, viewed.status)


def in_order(values: dict[str, Any]) -> list[tuple[str, Any, str]]:
    """Return names, values and meanings of the hyperparameters in the order of the form, a switch as on or off.

    Those that exist no more come last.
    """
    known = [(name, entry, values[name]) for name, entry in TABLE.items() if name in values]
    former = [(name, value, "") for name, value in values.items() if name not in TABLE]
    rows = [
        (name, ("off", "on")[bool(value)] if is_switch(entry) else value, entry.meaning.removeprefix("1: "))
        for name, entry, value in known
    ]
    return [(name.replace("_", " "), value, meaning) for name, value, meaning in [*rows, *former]]


@login_required
@require_POST
def move_run(request: HttpRequest, pk: str, verb: str) -> HttpResponse:
    """Cancel or resume a run, as `verb` says, and redirect to it.

    A running run first saves a checkpoint; to cancel one that has ended changes nothing. Raises Http404 for another
    verb or a run that the person does not see, NotAllowed without scope train, and InvalidTransition for a run that
    cannot be resumed.
    """
    if verb not in ("cancel", "resume"):
        raise Http404
    moved = visible_or_404(request, TrainingRun.objects.select_related("project"), pk=pk)
    require_scope(request, moved.project, Scope.TRAIN)
    if verb == "cancel":
        moved.cancel(by=actor_of(request), reason=reason_in(request))
    else:
        moved.resume(by=actor_of(request))
    messages.success(request, f"The run is {moved.status}.")
    return redirect("training-run", pk=pk)
