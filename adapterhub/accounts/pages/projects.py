"""The pages of projects: create one, and its members with their roles."""

from __future__ import annotations

from typing import Any, cast

from django import forms
from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.views.decorators.http import require_POST

from adapterhub.accounts import memberships
from adapterhub.accounts.models import Membership, User
from adapterhub.api.pages import allowed, errors_on, form_page, reason_in
from adapterhub.api.permissions import actor_of
from adapterhub.core.errors import Invalid, NotAllowed
from adapterhub.core.forms import Form
from adapterhub.core.tenancy import ROLE_HELP, Scope


class ProjectForm(Form):
    """A form for a new project."""

    name = forms.CharField(max_length=200, help_text="As people call it, such as European compliance.")
    slug = forms.SlugField(
        max_length=50, help_text="Its short name in addresses, tokens and served names, such as eu. It never changes."
    )


class RoleForm(Form):
    """A form for a further role of a member."""

    user = forms.ChoiceField(label="Member")
    role = forms.ChoiceField(choices=Membership.Role.choices, help_text=ROLE_HELP)

    def __init__(self, *args: Any, people: list[str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        cast(forms.ChoiceField, self.fields["user"]).choices = [(name, name) for name in people]


@login_required
def new_project(request: HttpRequest) -> HttpResponse:
    """Show the form of a new project; a POST creates it, makes the administrator its admin, and redirects to it.

    Raises NotAllowed for who is no administrator of the installation.
    """
    user = cast(User, request.user)
    if not user.is_superuser:
        raise NotAllowed("Only an administrator of the installation can create projects.")
    form = ProjectForm(request.POST or None)
    if form.is_valid():
        with errors_on(form):
            project = memberships.create_project(by=actor_of(request), admin=user, **form.cleaned_data)
            messages.success(request, f"{project.name} is there, and you are its admin.")
            return redirect("project", slug=project.slug)
    return form_page(
        request,
        form,
        title="New project",
        lead="A project is a tenant: its datasets, adapters, aliases, members and audit trail are its own.",
        action="Create the project",
        back=reverse("settings"),
        place="Settings",
    )


@login_required
def project(request: HttpRequest, slug: str) -> HttpResponse:
    """Show a project's members; a POST grants a member a further role, or shows the form's errors as 422.

    Raises Http404 for who is no admin of it.
    """
    viewed = get_object_or_404(allowed(request, Scope.ADMIN), slug=slug)
    roles = viewed.memberships.select_related("user").order_by("user__username", "role")
    people = list(dict.fromkeys(row.user.username for row in roles if not row.user.is_service))
    form = RoleForm(request.POST or None, people=people)
    if form.is_valid():
        with errors_on(form):
            fields = form.cleaned_data
            membership = memberships.grant_further(viewed, fields["user"], fields["role"], by=actor_of(request))
            messages.success(request, f"{membership.user} is {membership.role} in {viewed.name} now.")
            return redirect("project", slug=slug)
    context = {"project": viewed, "roles": roles, "form": form, "people": people}
    return render(request, "accounts/project.html", context, status=422 if form.errors else 200)


@login_required
@require_POST
def revoke_role(request: HttpRequest, slug: str) -> HttpResponse:
    """Revoke a role of a member in the project, then redirect to it.

    Raises Http404 for who is no admin of it, and Invalid if the role is not held or no reason is given.
    """
    viewed = get_object_or_404(allowed(request, Scope.ADMIN), slug=slug)
    named = request.POST.get("held", "")
    membership = viewed.memberships.select_related("user").filter(pk=named if named.isdecimal() else None).first()
    if membership is None:
        raise Invalid("This role is no longer held: reload the page.", field="held")
    memberships.revoke(membership, by=actor_of(request), reason=reason_in(request))
    messages.success(request, f"{membership.user} is no longer {membership.role} in {viewed.name}.")
    return redirect("project", slug=slug)
