"""The pages of webhooks and their deliveries: list, create and revoke webhooks, and redeliver."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib.auth.decorators import login_required
from django.db.models import Q
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_POST

from adapterhub.accounts.models import Project
from adapterhub.api.listing import Listing
from adapterhub.api.pages import allowed, allowed_somewhere, offer, reason_in
from adapterhub.api.permissions import actor_of, require_scope
from adapterhub.core.forms import Form
from adapterhub.core.tenancy import Scope
from adapterhub.webhooks.models import Delivery, DeliveryStatus, Webhook

OFFERED = 100
STATES = {"in use": Q(revoked_at=None), "revoked": Q(revoked_at__isnull=False)}


class WebhookForm(Form):
    """A form for a new webhook: project, address and events."""

    project: forms.ModelChoiceField[Project] = forms.ModelChoiceField(
        queryset=None, to_field_name="slug", empty_label=None
    )
    url = forms.CharField(
        max_length=500, label="Address", help_text="An https URL at a host that an operator has allowed."
    )
    events = forms.CharField(initial="rollout:* alias:*", help_text="Separated by spaces.")

    def __init__(self, *args: Any, projects: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        offer(self, project=projects)


@login_required
def webhooks(request: HttpRequest) -> HttpResponse:
    """List the webhooks; create one on POST, whose secret is in this response only.

    A refused form is shown again with its errors, as 422. Raises NotAllowed for who administers no project, and Invalid
    for an address or event that is not allowed.
    """
    projects = allowed_somewhere(request, Scope.ADMIN)
    form = WebhookForm(request.POST or None, projects=projects)
    secret = issue(request, form.cleaned_data) if form.is_valid() else ""
    visible_webhooks = Webhook.objects.filter(project__in=projects).select_related("project")
    listing = Listing(
        request,
        visible_webhooks,
        search=("url", "project__slug", "events__icontains"),
        states=STATES,
        sorts={"address": "url", "project": "project__slug", "made": "created_at"},
    )
    context = {"form": form, "shown": secret, **listing.context()}
    response = render(request, "webhooks/webhooks.html", context, status=422 if form.errors else 200)
    response["Cache-Control"] = "no-store"
    return response


def issue(request: HttpRequest, wanted: dict[str, Any]) -> str:
    """Create the webhook from a form's `project`, `url` and `events`, separated by spaces; return its secret.

    Raises NotAllowed without scope `admin` in the project, and Invalid for an address or event that is not allowed.
    """
    require_scope(request, wanted["project"], Scope.ADMIN)
    events = wanted["events"].split()
    return Webhook.create(wanted["project"], wanted["url"], events, by=actor_of(request)).secret


@login_required
def deliveries(request: HttpRequest) -> HttpResponse:
    """List the deliveries of the projects that the user administers, with each attempt's result.

    Raises NotAllowed for who administers none.
    """
    projects = allowed_somewhere(request, Scope.ADMIN)
    webhooks = Webhook.objects.filter(project__in=projects)[:OFFERED]
    visible_deliveries = Delivery.objects.filter(webhook__project__in=projects).select_related("webhook", "event")
    listing = Listing(
        request,
        visible_deliveries.prefetch_related("log"),
        search=("event__tag", "event__object_name"),
        sorts={"made": "created_at", "attempts": "attempts"},
        choices={"status": DeliveryStatus.choices, "webhook": [(str(each.pk), each.url) for each in webhooks]},
    )
    return render(request, "webhooks/deliveries.html", listing.context())


@login_required
@require_POST
def revoke(request: HttpRequest, pk: str) -> HttpResponse:
    """Revoke a webhook, then redirect to the list.

    Raises Http404 for one of a project that the user does not administer, and Invalid without a reason.
    """
    webhook = get_object_or_404(Webhook, pk=pk, project__in=allowed(request, Scope.ADMIN))
    webhook.revoke(by=actor_of(request), reason=reason_in(request))
    return redirect("webhooks")


@login_required
@require_POST
def redeliver(request: HttpRequest, pk: int) -> HttpResponse:
    """Send a delivery again with the same id, then redirect to the list.

    Raises Http404 for one of a project that the user does not administer, InvalidTransition for a revoked webhook.
    """
    own_deliveries = Delivery.objects.filter(webhook__project__in=allowed(request, Scope.ADMIN)).select_related(
        "webhook__project"
    )
    get_object_or_404(own_deliveries, pk=pk).redeliver(by=actor_of(request))
    return redirect("deliveries")
