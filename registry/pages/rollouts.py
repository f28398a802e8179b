"""Pages of rollouts: each view checks permissions, calls one method of the model, and renders the result."""

from __future__ import annotations

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.db.models import prefetch_related_objects
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.utils.timezone import now
from django.views.decorators.http import require_POST

from adapterhub.api.listing import Listing
from adapterhub.api.pages import followed, visible_or_404, visible_rows
from adapterhub.api.permissions import actor_of, require_scope, scopes_in
from adapterhub.audit.models import AuditEvent
from adapterhub.core.tenancy import Scope
from registry.models import Rollout, RolloutStatus, without_bodies
from registry.models.rollout_states import SERVING
from registry.pages.forms import PlanForm, ReasonForm, SteeringForm, WeightForm, cleaned, plan_of
from registry.pages.rollout_summary import summary

ROLLOUT_SORTS = {"alias": "alias__name", "opened": "created_at"}
VERBS = {
    "edit": PlanForm,
    "start": SteeringForm,
    "discard": SteeringForm,
    "pause": SteeringForm,
    "resume": SteeringForm,
    "set-weight": WeightForm,
    "advance": SteeringForm,
    "promote": SteeringForm,
    "rollback": ReasonForm,
}


@login_required
def rollouts(request: HttpRequest) -> HttpResponse:
    """List the rollouts, newest first unless the query string sorts."""
    queryset = without_bodies(
        Rollout.objects.select_related("alias__project", "stable__adapter__project", "candidate__adapter__project"),
        "stable",
        "candidate",
    )
    listing = Listing(
        request,
        visible_rows(request, queryset, "alias__project"),
        sorts=ROLLOUT_SORTS,
        search=("alias__name", "reason", "stable__served_name", "candidate__served_name"),
        choices={"status": RolloutStatus.choices},
    )
    return render(request, "registry/rollouts.html", listing.context())


def find_rollout(request: HttpRequest, pk: str) -> Rollout:
    """Return the rollout in the URL; 404 if the caller does not see it."""
    queryset = Rollout.objects.select_related(
        "alias__project", "alias__cluster", "stable__adapter__project", "candidate__adapter__project"
    )
    return visible_or_404(request, queryset, "alias__project", pk=pk)


@login_required
def rollout(request: HttpRequest, pk: str) -> HttpResponse:
    """Show a rollout: state, metrics, plan, and the verbs that its status allows.

    A poll gets the changing part alone.
    """
    viewed = find_rollout(request, pk)
    prefetch_related_objects([viewed], "minutes", "approvals")
    context = {
        "rollout": viewed,
        "rest": 100 - viewed.weight,
        "is_serving": viewed.status in SERVING,
        **summary(viewed, now()),
        "may_operate": Scope.OPERATE in scopes_in(request, viewed.alias.project),
        "may_roll_back": viewed.is_active or viewed.status == "promoted",
        "may_advance": viewed.status in SERVING and not viewed.is_last_step,
        "approvals": viewed.approvals.all(),
        "plan_form": plan_form(viewed) if viewed.is_draft else None,
        "events": AuditEvent.objects.about(viewed),
        "replicas": viewed.alias.cluster.replicas.all(),
    }
    return followed(request, "registry/rollout.html", "registry/_rollout_state.html", context, viewed.generation)


def plan_form(draft: Rollout) -> PlanForm:
    """Return the form to edit a draft, filled with its present plan."""
    stands = {"expected_generation": draft.generation, "plan": plan_of(draft.steps), "weight": max(1, draft.weight)}
    return PlanForm(initial=stands)


@login_required
@require_POST
def move_rollout(request: HttpRequest, pk: str, verb: str) -> HttpResponse:
    """Call the rollout's method that `verb` names, one of VERBS, with the form's fields, and redirect to the rollout.

    Raises Http404 for another verb, NotAllowed without scope operate, and as the method does.
    """
    if verb not in VERBS:
        raise Http404
    moved = find_rollout(request, pk)
    require_scope(request, moved.alias.project, Scope.OPERATE)
    getattr(moved, verb.replace("-", "_"))(by=actor_of(request), **cleaned(VERBS[verb](request.POST)))
    messages.success(request, f"Done: {moved.alias} is {moved.get_status_display()}.")
    return redirect("rollout", pk=pk)
