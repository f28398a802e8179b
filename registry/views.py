"""Pages of the registry: guard, verb, answer."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.db.models import Avg, Count, Max, Q, QuerySet, prefetch_related_objects
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.utils.timezone import now
from django.views.decorators.http import require_POST

from adapterhub.accounts.models import Scope
from adapterhub.api.listing import Listing
from adapterhub.api.pages import followed, mine, one
from adapterhub.api.permissions import actor_of, require_scope, scopes_in
from adapterhub.audit.models import AuditEvent
from adapterhub.core.errors import Invalid
from registry.models import Adapter, AdapterVersion, Alias, Response, Rollout, RolloutStatus, without_bodies
from registry.models.adapter import VersionStatus
from registry.models.rollout import SERVING
from registry.pages.forms import AtForm, MoveForm, PlanForm, PromoteForm, ReasonForm, SteeringForm, WeightForm, plan_of
from registry.pages.lineage_graph import ancestry
from registry.pages.rollout_summary import story

PAGE, TOLD, COMPARED, DRAWN, LATEST = 50, 20, 12, 8, 10
ADAPTER_SORTS = {"name": "slug", "versions": "count", "newest": "newest"}
VERSION_SORTS = {"number": "number", "parameters": "parameters", "rank": "max_rank", "loss": "metrics__loss_after"}
ROLLOUT_SORTS = {"alias": "alias__name", "opened": "created_at"}
VERBS = {"edit": PlanForm, "start": SteeringForm, "discard": SteeringForm, "pause": SteeringForm,
         "resume": SteeringForm, "set-weight": WeightForm, "advance": SteeringForm,
         "promote": SteeringForm, "rollback": ReasonForm}  # fmt: skip


@login_required
def adapters(request: HttpRequest) -> HttpResponse:
    """The list; the address searches, sorts and pages."""
    found = mine(request, Adapter.objects.select_related("project", "base_model"))
    counted = found.annotate(count=Count("versions"), newest=Max("versions__created_at")).order_by("slug")
    listing = Listing(request, counted, search=("slug", "description", "tags__icontains"), sorts=ADAPTER_SORTS)
    return render(request, "registry/adapters.html", listing.context(PAGE))


@login_required
def adapter(request: HttpRequest, slug: str) -> HttpResponse:
    shown = one(request, Adapter.objects.select_related("project", "base_model"), slug=slug)
    found = without_bodies(shown.versions.prefetch_related("aliases"), "")
    choices = {"status": VersionStatus.choices}
    listing = Listing(request, found, search=("digest", "method", "served_name"), sorts=VERSION_SORTS, choices=choices)
    newest = shown.versions.select_related("adapter").defer("config", "ranks").prefetch_related("aliases")[:DRAWN]
    context = {
        "adapter": shown,
        "events": history(shown)[:TOLD],
        "ancestry": ancestry(newest),
        "traffic": traffic(shown),
        **listing.context(PAGE),
    }
    return render(request, "registry/adapter.html", context)


def history(shown: Adapter) -> QuerySet[AuditEvent]:
    """What happened to the adapter and to its versions, newest first."""
    names = {model: model._meta.model_name for model in (Adapter, AdapterVersion)}
    keys = [str(key) for key in shown.versions.values_list("pk", flat=True)[:PAGE]]
    about = Q(object_type=names[Adapter], object_id=str(shown.pk))
    about |= Q(object_type=names[AdapterVersion], object_id__in=keys)
    return AuditEvent.objects.filter(about).order_by("-id")


def traffic(shown: Adapter) -> QuerySet[Any]:
    """Answers of each version in the last day and how long they took, the busiest first."""
    since = now() - timedelta(days=1)
    counted = Response.objects.filter(version__adapter=shown, at__gte=since).values("version__number")
    return counted.annotate(answers=Count("pk"), mean_ms=Avg("total_ms")).order_by("-answers")


def find_version(request: HttpRequest, slug: str, number: int) -> AdapterVersion:
    queryset = AdapterVersion.objects.select_related("adapter__project", "adapter__base_model", "created_by")
    return one(request, queryset, "adapter__project", adapter__slug=slug, number=number)


@login_required
def version(request: HttpRequest, slug: str, number: int) -> HttpResponse:
    shown = find_version(request, slug, number)
    scopes = scopes_in(request, shown.project)
    context = {
        "version": shown,
        "aliases": shown.aliases.all(),
        "form": PromoteForm(version=shown) if Scope.OPERATE in scopes else None,
        "may_compress": Scope.TRAIN in scopes and shown.status == VersionStatus.READY,
        "less": max(1, shown.max_rank // 2),
        "events": AuditEvent.objects.about(shown),
        "heat": heat_map(shown.ranks),
        "evaluations": shown.evaluations.select_related("against__adapter")[:5],
        "verdicts": shown.verdicts(),
        "others": without_bodies(shown.adapter.versions.exclude(pk=shown.pk), "")[:COMPARED],
    }
    return render(request, "registry/version.html", context)


@login_required
@require_POST
def promote(request: HttpRequest, slug: str, number: int) -> HttpResponse:
    """Open a rollout that moves an alias to this version."""
    shown = find_version(request, slug, number)
    require_scope(request, shown.project, Scope.OPERATE)
    form = PromoteForm(request.POST, version=shown)
    fields = cleaned(form)
    rollout = Rollout.create(
        alias=fields["alias"],
        candidate=shown,
        steps=fields["steps"],
        guardrails=fields["guardrails"],
        reason=fields["reason"],
        by=actor_of(request),
        draft=fields["draft"],
    )
    started = "The rollout starts when every healthy replica has loaded the version."
    messages.success(request, "The draft is kept: start it below." if rollout.is_draft else started)
    return redirect("rollout", pk=rollout.pk)


def cleaned(form: Any) -> dict[str, Any]:
    """The form's values. Raises Invalid with the first error and its field."""
    if not form.is_valid():
        field, errors = next(iter(form.errors.items()))
        raise Invalid(f"{form.fields[field].label or field}: {errors[0]}", field=field)
    return form.cleaned_data


def find_alias(request: HttpRequest, name: str) -> Alias:
    queryset = Alias.objects.select_related("project", "cluster__base_model", "version__adapter")
    return one(request, queryset, name=name)


@login_required
def alias(request: HttpRequest, name: str) -> HttpResponse:
    """What it serves, served and is moved by; operators move it here."""
    shown = find_alias(request, name)
    led = shown.rollouts.select_related("stable__adapter", "candidate__adapter")
    rollouts = list(without_bodies(led, "stable", "candidate")[:LATEST])
    moves = without_bodies(shown.moves.select_related("version__adapter"), "version")
    listing = Listing(request, moves, search=("version__served_name", "reason", "actor_name"))
    initial = {"version": request.GET.get("version"), "expected": shown.version_id}
    moment = AtForm(request.GET)
    at = moment.cleaned_data["at"] if moment.is_valid() else None
    may_operate = Scope.OPERATE in scopes_in(request, shown.project)
    active = next((rollout for rollout in rollouts if rollout.is_active), None)
    movable = may_operate and not shown.quorum and not active
    context = {
        "at": at,
        "at_text": request.GET.get("at", ""),
        "served_then": shown.served_at(at) if at else None,
        "alias": shown,
        "rollouts": rollouts,
        "may_operate": may_operate,
        "active": active,
        "form": MoveForm(alias=shown, initial=initial) if movable else None,
        **listing.context(PAGE),
    }
    return render(request, "registry/alias.html", context)


@login_required
@require_POST
def move_alias(request: HttpRequest, name: str) -> HttpResponse:
    """Serve another version at once."""
    shown = find_alias(request, name)
    require_scope(request, shown.project, Scope.OPERATE)
    fields = cleaned(MoveForm(request.POST, alias=shown))
    shown.move(fields["version"], expected=fields["expected"], reason=fields["reason"], by=actor_of(request))
    messages.success(request, f"{shown} serves {shown.version} now.")
    return redirect("alias", name=name)


@login_required
def rollouts(request: HttpRequest) -> HttpResponse:
    queryset = without_bodies(
        Rollout.objects.select_related("alias", "stable__adapter", "candidate__adapter"), "stable", "candidate"
    )
    listing = Listing(request, mine(request, queryset, "alias__project"), sorts=ROLLOUT_SORTS,
                      search=("alias__name", "reason", "stable__served_name", "candidate__served_name"),
                      choices={"status": RolloutStatus.choices})  # fmt: skip
    return render(request, "registry/rollouts.html", listing.context(PAGE))


def find_rollout(request: HttpRequest, pk: str) -> Rollout:
    queryset = Rollout.objects.select_related(
        "alias__project", "alias__cluster", "stable__adapter", "candidate__adapter"
    )
    return one(request, queryset, "alias__project", pk=pk)


@login_required
def rollout(request: HttpRequest, pk: str) -> HttpResponse:
    shown = find_rollout(request, pk)
    prefetch_related_objects([shown], "minutes")
    context = {
        "rollout": shown,
        "rest": 100 - shown.weight,
        "is_serving": shown.status in SERVING,
        **story(shown, now()),
        "may_operate": Scope.OPERATE in scopes_in(request, shown.alias.project),
        "may_roll_back": shown.is_active or shown.status == "promoted",
        "may_advance": shown.status in SERVING and not shown.is_last_step,
        "approvals": shown.approvals.all(),
        "plan_form": plan_form(shown) if shown.is_draft else None,
        "events": AuditEvent.objects.about(shown),
        "replicas": shown.alias.cluster.replicas.all(),
    }
    return followed(request, "registry/rollout.html", "registry/_rollout_state.html", context, shown.generation)


def plan_form(draft: Rollout) -> PlanForm:
    """As the draft stands."""
    stands = {"expected_generation": draft.generation, "plan": plan_of(draft.steps), "weight": max(1, draft.weight)}
    return PlanForm(initial=stands)


@login_required
@require_POST
def move_rollout(request: HttpRequest, pk: str, verb: str) -> HttpResponse:
    """One of VERBS."""
    if verb not in VERBS:
        raise Http404
    shown = find_rollout(request, pk)
    require_scope(request, shown.alias.project, Scope.OPERATE)
    getattr(shown, verb.replace("-", "_"))(by=actor_of(request), **cleaned(VERBS[verb](request.POST)))
    messages.success(request, f"Done: {shown.alias} is {shown.get_status_display()}.")
    return redirect("rollout", pk=pk)


KINDS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
CELL, LEFT, TOP = 18, 84, 20


def heat_map(ranks: dict[str, int], most: int = 0) -> dict[str, Any]:
    """Cells of a picture layers x module kinds: place, opacity and what to say about each. `most` is the darkest."""
    most = most or max(ranks.values(), default=1) or 1
    cells = []
    for name, rank in ranks.items():
        parts = name.split(".")
        layer, kind = int(parts[2]), parts[-1]
        place = {"x": LEFT + layer * CELL, "y": TOP + KINDS.index(kind) * CELL}
        shade = round(0.08 + 0.92 * rank / most, 2) if rank else 0.03
        cells.append({**place, "opacity": shade, "title": f"{name}: {f'rank {rank}' if rank else 'left out'}"})
    layers = 1 + max((int(name.split(".")[2]) for name in ranks), default=0)
    rows = [{"x": LEFT - 6, "y": TOP + 13 + number * CELL, "kind": kind} for number, kind in enumerate(KINDS)]
    columns = [{"x": LEFT + layer * CELL + 3, "layer": layer} for layer in range(0, layers, 5)]
    return {"cells": cells, "rows": rows, "columns": columns, "most": most,
            "width": LEFT + layers * CELL + 4, "height": TOP + len(KINDS) * CELL + 4}  # fmt: skip
