"""Pages of an alias: each view checks permissions, calls one method of the model, and renders the result."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlencode

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils.timezone import now
from django.views.decorators.http import require_POST

from adapterhub.api.listing import Listing
from adapterhub.api.pages import visible_or_404
from adapterhub.api.permissions import actor_of, require_scope, scopes_in
from adapterhub.core.tenancy import Scope
from registry.evidence.responsibility import responsibility
from registry.models import Alias, without_bodies
from registry.pages.forms import AtForm, MoveForm, ReasonForm, cleaned
from registry.pages.rollout_figures import verdict_table
from registry.pages.served_bar import served_bar

LATEST = 10


def find_alias(request: HttpRequest, name: str) -> Alias:
    """Return the alias in the URL.

    Raises Http404 if the person does not see it, and Conflict if several projects have one of this name.
    """
    queryset = Alias.objects.select_related("project", "cluster__base_model", "version__adapter__project")
    return visible_or_404(request, queryset, name=name)


@login_required
def alias(request: HttpRequest, name: str) -> HttpResponse:
    """Show what the alias serves, its moves and its rollouts; with `at`, redirect to what it served at that time.

    Operators get a form to move it, unless it is protected or a rollout is active. Raises Http404 if the person does
    not see it.
    """
    viewed = find_alias(request, name)
    led = viewed.rollouts.select_related("stable__adapter__project", "candidate__adapter__project")
    rollouts = list(without_bodies(led, "stable", "candidate")[:LATEST])
    moves = without_bodies(viewed.moves.select_related("version__adapter__project"), "version")
    listing = Listing(request, moves, search=("version__served_name", "reason", "actor_name"))
    initial = {"version": request.GET.get("version"), "expected": viewed.version_id}
    if "at" in request.GET:
        return redirect(f"{reverse('responsibility', args=[viewed.ref])}?{urlencode({'at': request.GET['at']})}")
    may_operate = Scope.OPERATE in scopes_in(request, viewed.project)
    active = next((rollout for rollout in rollouts if rollout.is_active), None)
    movable = may_operate and not viewed.quorum and not active
    context = {
        "alias": viewed,
        "rollouts": rollouts,
        "may_operate": may_operate,
        "active": active,
        "form": MoveForm(alias=viewed, initial=initial) if movable else None,
        **listing.context(),
    }
    return render(request, "registry/alias.html", context)


@login_required
def answer_for(request: HttpRequest, name: str) -> HttpResponse:
    """Show what the alias served over time, and for one time who requested, decided and signed that, why and on what.

    `at` in the query string is the time; without it, now. A time that cannot be read gives status 422. Raises Http404
    if the person does not see the alias.
    """
    viewed = find_alias(request, name)
    form = AtForm(request.GET) if request.GET.get("at") else None
    at: datetime = form.cleaned_data["at"] if form and form.is_valid() else whole(now(), timedelta(seconds=1))
    answer = None if form and form.errors else responsibility(viewed, at)
    verdicts = answer.decision.verdicts if answer and answer.decision else None
    context: dict[str, Any] = {
        "alias": viewed,
        "at": at,
        "field": in_field(at),
        "is_invalid": bool(form and form.errors),
        "answer": answer,
        "verdicts": verdict_table(answer.rollout, verdicts) if answer and answer.rollout and verdicts else None,
        "bar": served_bar(viewed, at, now()),
        "permalink": request.build_absolute_uri(f"{request.path}?{urlencode({'at': in_utc(at)})}"),
    }
    return render(request, "registry/responsibility.html", context, status=422 if context["is_invalid"] else 200)


def in_utc(at: datetime) -> str:
    """Return the time as text in UTC for a URL, with a fraction of a second only if it has one."""
    return at.astimezone(UTC).isoformat().replace("+00:00", "Z")


def in_field(at: datetime) -> dict[str, str]:
    """Return value and step of the form field for a time, in UTC.

    A fraction of a second is rounded up to milliseconds, so that the time does not precede a move.
    """
    if not at.microsecond:
        return {"value": f"{at.astimezone(UTC):%Y-%m-%dT%H:%M:%S}", "step": "1"}
    rounded = whole(at, timedelta(milliseconds=1)).astimezone(UTC)
    return {"value": rounded.strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3], "step": "0.001"}


def whole(at: datetime, unit: timedelta) -> datetime:
    """Return the time rounded up to a multiple of the unit, which is at most a second."""
    return at + timedelta(microseconds=-at.microsecond % (unit // timedelta(microseconds=1)))


@login_required
@require_POST
def move_alias(request: HttpRequest, name: str) -> HttpResponse:
    """Move the alias to another version at once and redirect to it.

    Raises Http404 if the person does not see it, NotAllowed without scope operate, and as `Alias.move` does.
    """
    moved = find_alias(request, name)
    require_scope(request, moved.project, Scope.OPERATE)
    fields = cleaned(MoveForm(request.POST, alias=moved))
    moved.move(fields["version"], expected=fields["expected"], reason=fields["reason"], by=actor_of(request))
    messages.success(request, f"{moved} serves {moved.version} now.")
    return redirect("alias", name=name)


@login_required
@require_POST
def set_default(request: HttpRequest, name: str) -> HttpResponse:
    """Send calls with the served adapter's bare name to this alias, or stop that if they go to it already.

    Then redirect to the alias. Raises Http404 if the person does not see it, NotAllowed without scope operate, and as
    `Alias.set_default` does.
    """
    changed = find_alias(request, name)
    require_scope(request, changed.project, Scope.OPERATE)
    changed.set_default(changed.default_of_id is None, by=actor_of(request), **cleaned(ReasonForm(request.POST)))
    adapter = changed.version.adapter
    messages.success(request, f"{adapter} stands for {changed if changed.default_of_id else 'no alias'} now.")
    return redirect("alias", name=name)
