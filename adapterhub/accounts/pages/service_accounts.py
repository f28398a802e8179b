"""The pages on which admins of projects list, create and close service accounts."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_POST

from adapterhub.accounts import service_accounts
from adapterhub.accounts.models import Membership, Project, User
from adapterhub.api.listing import Listing
from adapterhub.api.pages import allowed, allowed_somewhere, offer, reason_in
from adapterhub.api.permissions import actor_of
from adapterhub.core.errors import DomainError, Invalid
from adapterhub.core.forms import Form
from adapterhub.core.tenancy import ROLE_HELP, Scope

ROLES = [(role, role) for role in service_accounts.ROLES]


class AccountForm(Form):
    """A form for a new service account: project, name and role."""

    project: forms.ModelChoiceField[Project] = forms.ModelChoiceField(
        queryset=None, to_field_name="slug", empty_label=None
    )
    name = forms.SlugField(
        max_length=service_accounts.LONGEST_NAME, help_text="Of the program, such as ci; letters, digits, - and _."
    )
    role = forms.ChoiceField(choices=ROLES, help_text=ROLE_HELP)

    def __init__(self, *args: Any, projects: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"auto_id": "account_%s", **kwargs})
        offer(self, project=projects)


@login_required
def accounts(request: HttpRequest) -> HttpResponse:
    """List the service accounts of the projects that the user administers; create one on POST.

    A refused form is shown again with its errors, as 422. Raises NotAllowed for who administers no project.
    """
    projects = allowed_somewhere(request, Scope.ADMIN)
    form = AccountForm(request.POST or None, projects=projects)
    if form.is_valid():
        try:
            service_accounts.create(by=actor_of(request), **form.cleaned_data)
            return redirect("service-accounts")
        except DomainError as error:
            form.add_error(error.field if error.field in form.fields else None, error.detail)
    memberships = Membership.objects.filter(project__in=projects, user__is_service=True).select_related(
        "user__owner", "project"
    )
    listing = Listing(
        request,
        memberships,
        search=("user__username", "project__slug"),
        choices={"role": ROLES},
        sorts={"name": "user__username", "project": "project__slug"},
    )
    context = {"form": form, **listing.context()}
    return render(request, "accounts/service_accounts.html", context, status=422 if form.errors else 200)


class OwnerForm(Form):
    """A form for another owner of a service account."""

    owner = forms.CharField(max_length=150)
    reason = forms.CharField(max_length=2000)


@login_required
@require_POST
def hand_over(request: HttpRequest, project: str, name: str) -> HttpResponse:
    """Make another member of the project the owner of a service account, then redirect to the list.

    Raises Http404 for an account or project that the user does not administer, and Invalid without an owner in the
    project and a reason.
    """
    led = get_object_or_404(allowed(request, Scope.ADMIN), slug=project)
    account = get_object_or_404(User.objects.distinct(), username=name, is_service=True, memberships__project=led)
    form = OwnerForm(request.POST)
    if not form.is_valid():
        raise Invalid("Name a member of the project and a reason.", field="owner")
    owner = service_accounts.owner_named(led, form.cleaned_data["owner"])
    service_accounts.hand_over(account, owner, led, by=actor_of(request), reason=form.cleaned_data["reason"])
    messages.success(request, f"{owner} answers for {account} from now on.")
    return redirect("service-accounts")


@login_required
@require_POST
def close(request: HttpRequest, project: str, name: str) -> HttpResponse:
    """Close a service account in a project: revoke its tokens and roles there, then redirect.

    Raises Http404 for an account or project that the user does not administer, and Invalid without a reason.
    """
    led = get_object_or_404(allowed(request, Scope.ADMIN), slug=project)
    account = get_object_or_404(User.objects.distinct(), username=name, is_service=True, memberships__project=led)
    service_accounts.close(account, led, by=actor_of(request), reason=reason_in(request))
    messages.success(request, f"{account} is closed in {led}: its tokens there no longer work.")
    return redirect("service-accounts")
