"""The page of invitations: those to the person who is signed in, and those of the projects that the person leads."""

from __future__ import annotations

from typing import Any, cast
from uuid import UUID

from django import forms
from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.db.models import Q
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils.timezone import now
from django.views.decorators.http import require_POST

from adapterhub.accounts.invitations import verbs
from adapterhub.accounts.models import Invitation, Membership, Project, User
from adapterhub.api.listing import Listing
from adapterhub.api.pages import allowed, allowed_somewhere, offer, reason_in
from adapterhub.api.permissions import actor_of
from adapterhub.core.errors import DomainError
from adapterhub.core.forms import Form
from adapterhub.core.tenancy import ROLE_HELP, Scope

OPEN = Invitation.State.OPEN


class InvitationForm(Form):
    """A form for an invitation: project, address, role and reason."""

    project: forms.ModelChoiceField[Project] = forms.ModelChoiceField(
        queryset=None, to_field_name="slug", empty_label=None
    )
    address = forms.CharField(max_length=254, label="Mail address or user name", help_text="Of an account that exists.")
    role = forms.ChoiceField(choices=Membership.Role.choices, help_text=ROLE_HELP)
    reason = forms.CharField(max_length=2000, help_text="Recorded in the audit trail.")

    def __init__(self, *args: Any, projects: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        offer(self, project=projects)


@login_required
def invitations(request: HttpRequest) -> HttpResponse:
    """List the invitations to the person and those of the projects that they lead; send one on POST.

    A refused form is shown again with its errors, as 422. A POST raises NotAllowed for who leads no project.
    """
    led = allowed(request, Scope.ADMIN).filter(archived_at=None)
    form = InvitationForm(request.POST or None, projects=led)
    if request.method == "POST":
        allowed_somewhere(request, Scope.ADMIN)
    if form.is_valid():
        try:
            verbs.send(by=actor_of(request), **form.cleaned_data)
            messages.success(request, "Invited. Tell the person to sign in and to open the page Invitations.")
            return redirect("invitations")
        except DomainError as error:
            form.add_error(error.field if error.field in form.fields else None, error.detail)
    listing = Listing(
        request,
        Invitation.objects.filter(project__in=led).select_related("project", "invited_by"),
        search=("address", "project__slug"),
        choices={"role": Membership.Role.choices},
        sorts={"address": "address", "project": "project__slug", "sent": "created_at"},
        states={
            "open": Q(state=OPEN, expires_at__gt=now()),
            "accepted": Q(state=Invitation.State.ACCEPTED),
            "over": ~Q(state__in=(OPEN, Invitation.State.ACCEPTED)) | Q(state=OPEN, expires_at__lte=now()),
        },
    )
    context = {"mine": verbs.for_person(cast(User, request.user)), "form": form, "leads": led.exists()}
    context |= listing.context()
    return render(request, "accounts/invitations.html", context, status=422 if form.errors else 200)


@login_required
@require_POST
def answer(request: HttpRequest, pk: UUID, verb: str) -> HttpResponse:
    """Accept or decline an invitation to the person who is signed in, then redirect to the list.

    Raises Http404 for another verb or another's invitation, and Conflict if it is no longer open.
    """
    invitation = get_object_or_404(verbs.for_person(cast(User, request.user)), pk=pk)
    if verb == "accept":
        verbs.accept(invitation, by=actor_of(request))
        messages.success(request, f"You now have the role {invitation.role} in {invitation.project.name}.")
    elif verb != "decline":
        raise Http404(f"There is no verb {verb!r}.")
    else:
        verbs.decline(invitation, by=actor_of(request))
        messages.success(request, f"You declined the role {invitation.role} in {invitation.project.name}.")
    return redirect("invitations")


@login_required
@require_POST
def revoke(request: HttpRequest, pk: UUID) -> HttpResponse:
    """Revoke an invitation of a project that the person administers, then redirect to the list of invitations.

    Raises Http404 if there is none that the person may revoke, Conflict unless it is open, Invalid without a reason.
    """
    invitation = get_object_or_404(Invitation, pk=pk, project__in=allowed(request, Scope.ADMIN))
    verbs.revoke(invitation, by=actor_of(request), reason=reason_in(request))
    messages.success(request, f"{invitation.address} can no longer accept.")
    return redirect("invitations")
