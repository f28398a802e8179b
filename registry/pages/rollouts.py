"""Pages of rollouts: each view checks permissions, calls one method of the model, and renders the result."""

from __future__ import annotations

from typing import Any

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
from adapterhub.core.errors import Conflict
from adapterhub.core.tenancy import Scope
from registry.models import Rollout, RolloutDecision, RolloutStatus, without_bodies
from registry.models.decision import Outcome, verdicts_of
from registry.models.rollout_states import MOVES, SERVING, in_words
from registry.pages.forms import PromotionForm, ReasonForm, SteeringForm, WeightForm, cleaned
from registry.pages.plan_form import PlanForm, plan_of
from registry.pages.rollout_figures import verdict_table
from registry.pages.rollout_summary import summary
from registry.rollouts.controller import LOOP

ROLLOUT_SORTS = {"alias": "alias__name", "opened": "created_at"}
VERBS = {
    "edit": PlanForm,
    "start": SteeringForm,
    "discard": SteeringForm,
    "pause": SteeringForm,
    "resume": SteeringForm,
    "set-weight": WeightForm,
    "advance": SteeringForm,
    "promote": PromotionForm,
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
    """Return the rollout in the URL. Raises Http404 if the person does not see it."""
    queryset = Rollout.objects.select_related(
        "alias__project",
        "alias__cluster",
        "alias__version__adapter__project",
        "stable__adapter__project",
        "candidate__adapter__project",
    )
    return visible_or_404(request, queryset, "alias__project", pk=pk)


@login_required
def rollout(request: HttpRequest, pk: str) -> HttpResponse:
    """Show a rollout: state, metrics, plan, and the actions that its status allows.

    A poll by htmx gets only the changing part. Raises Http404 if the person does not see it.
    """
    viewed = find_rollout(request, pk)
    prefetch_related_objects([viewed], "approvals", "decisions")
    events = AuditEvent.objects.about(viewed).defer("canonical").fitting()
    context = {
        "rollout": viewed,
        "rest": 100 - viewed.weight,
        "is_serving": viewed.status in SERVING,
        **summary(viewed, now(), events),
        **obstacles(viewed),
        "may_operate": Scope.OPERATE in scopes_in(request, viewed.alias.project),
        "may_roll_back": viewed.is_active or viewed.status == "promoted",
        "may_advance": viewed.status in SERVING and not viewed.is_last_step,
        "approvals": viewed.approvals.all(),
        "decisions": [decided(viewed, each) for each in viewed.decisions.all()],
        "plan_form": plan_form(viewed) if viewed.is_draft else None,
        "events": events,
        "replicas": viewed.alias.cluster.replicas.all(),
    }
    unmet = context["verdicts"]["unmet"] if context["verdicts"] else []
    # The page is loaded anew when another generation, an approval or a verdict changes what can be done.
    context["unmet"], context["seen"] = unmet, f"{viewed.generation}-{context['promotion_obstacle']}-{bool(unmet)}"
    return followed(request, "registry/rollout.html", "registry/_rollout_state.html", context, context["seen"])


def obstacles(rollout: Rollout) -> dict[str, str]:
    """Return the sentences that would refuse a promotion, the next step and resuming; "" where nothing would."""
    if not rollout.is_active:
        return {"promotion_obstacle": "", "step_obstacle": "", "resume_obstacle": ""}
    unsigned = "The signatures for its present share are missing." if rollout.waits_for_signature else ""
    return {
        "promotion_obstacle": rollout.promotion_obstacle,
        "step_obstacle": rollout.step_obstacle,
        "resume_obstacle": unsigned,
    }


def decided(rollout: Rollout, decision: RolloutDecision) -> dict[str, Any]:
    """Return {decision, table, overridden}: a decision, its table of verdicts, and the conditions that it overrode.

    Only a person's promotion or step overrides conditions; otherwise the list is empty.
    """
    table = verdict_table(rollout, decision.verdicts)
    by_hand = decision.outcome in (Outcome.PROMOTED, Outcome.STEPPED) and decision.actor_name != LOOP.name
    return {"decision": decision, "table": table, "overridden": table["unmet"] if by_hand else []}


def plan_form(draft: Rollout) -> PlanForm:
    """Return the form for editing a draft, filled with its present plan."""
    initial = {
        "expected_generation": draft.generation,
        "plan": plan_of(draft.steps, draft.guardrails),
        "weight": max(1, draft.weight),
        **{name: draft.checks.get(name, "") for name in ("refusal", "format")},
    }
    return PlanForm(initial=initial, steps=draft.steps, guardrails=draft.guardrails, auto_id="plan_%s")


@login_required
@require_POST
def move_rollout(request: HttpRequest, pk: str, verb: str) -> HttpResponse:
    """Call the rollout's method that `verb`, a key of VERBS, names, with the form's fields; redirect to the rollout.

    Raises Http404 for another verb or if the person does not see the rollout, NotAllowed without scope operate,
    Conflict for a promotion despite unmet conditions if the form's `overrides` is not set, and as the method does.
    """
    if verb not in VERBS:
        raise Http404
    moved = find_rollout(request, pk)
    require_scope(request, moved.alias.project, Scope.OPERATE)
    checks = {"checks": moved.checks} if verb == "edit" else {}
    fields = cleaned(VERBS[verb](request.POST, **checks))
    if verb == "promote" and not fields.pop("overrides"):
        require_met(moved)
    getattr(moved, verb.replace("-", "_"))(by=actor_of(request), **fields)
    messages.success(request, f"The rollout of {moved.alias} is {in_words(moved.status)}.")
    return redirect("rollout", pk=pk)


def require_met(rollout: Rollout) -> None:
    """Raise Conflict that lists the plan's conditions that are not met, if there are any.

    Nothing is checked for a rollout that was never opened or cannot be promoted.
    """
    verdicts = verdicts_of(rollout) if rollout.status in MOVES[RolloutStatus.PROMOTED] else None
    if verdicts and verdicts["unmet"]:
        raise Conflict(
            f"A promotion now would override: {' '.join(verdicts['unmet'])} Confirm it below, with the reason.",
            code="conditions_unmet",
        )
