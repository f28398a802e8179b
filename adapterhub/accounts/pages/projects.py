"""The pages of projects: create one, its members with their roles, and its limits at the routers."""

from __future__ import annotations

from typing import Any, cast

from django import forms
from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.views.decorators.http import require_POST

from adapterhub.accounts import memberships, project_limits
from adapterhub.accounts.models import Membership, Project, User
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


class LimitsForm(Form):
    """A form for what routers take of a project, and why; an empty field leaves it to the installation's limit."""

    requests_per_s = forms.FloatField(min_value=0.001, max_value=1e6, required=False, label="Requests a second")
    tokens_per_min = forms.IntegerField(min_value=1, max_value=2**31 - 1, required=False, label="Tokens a minute")
    reason = forms.CharField(max_length=2000, help_text="Recorded in the audit trail.")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name, most in project_limits.installation_limits().items():
            self.fields[name].help_text = f"At most {most:,.0f}; empty: that." if most else "Empty: no limit."
        self.fields["tokens_per_min"].help_text = f"Of questions and answers. {self.fields['tokens_per_min'].help_text}"


@login_required
def project(request: HttpRequest, slug: str) -> HttpResponse:
    """Show a project's members; a POST grants a member a further role, or shows the form's errors as 422.

    Raises Http404 for who is no admin of it.
    """
    viewed = get_object_or_404(allowed(request, Scope.ADMIN), slug=slug)
    form = RoleForm(request.POST or None, people=people_of(viewed))
    if form.is_valid():
        with errors_on(form):
            fields = form.cleaned_data
            membership = memberships.grant_further(viewed, fields["user"], fields["role"], by=actor_of(request))
            messages.success(request, f"{membership.user} is {membership.role} in {viewed.name} now.")
            return redirect("project", slug=slug)
    return project_page(request, viewed, form, LimitsForm(initial=project_limits.limits_of(viewed)))


def project_page(request: HttpRequest, viewed: Project, form: RoleForm, limits: LimitsForm) -> HttpResponse:
    """Return the page of a project with its forms; status 422 if one of them has errors."""
    context = {
        "project": viewed,
        "roles": roles_of(viewed),
        "form": form,
        "people": people_of(viewed),
        "limits": limits,
        "now": project_limits.limits_now(viewed),
    }
    return render(request, "accounts/project.html", context, status=422 if form.errors or limits.errors else 200)


def roles_of(viewed: Project) -> QuerySet[Membership]:
    """Return the roles in the project, by the names of who has them."""
    return viewed.memberships.select_related("user").order_by("user__username", "role")


def people_of(viewed: Project) -> list[str]:
    """Return the user names of the members, without service accounts, sorted."""
    return list(dict.fromkeys(row.user.username for row in roles_of(viewed) if not row.user.is_service))


@login_required
@require_POST
def limit_project(request: HttpRequest, slug: str) -> HttpResponse:
    """Change what routers take of the project, then redirect to it; a refused form is shown again as 422.

    Raises Http404 for who is no admin of it.
    """
    viewed = get_object_or_404(allowed(request, Scope.ADMIN), slug=slug)
    form = LimitsForm(request.POST)
    if form.is_valid():
        with errors_on(form):
            project_limits.limit(viewed, by=actor_of(request), **form.cleaned_data)
            messages.success(request, f"The limits of {viewed.name} hold at the routers at once.")
            return redirect("project", slug=slug)
    return project_page(request, viewed, RoleForm(people=people_of(viewed)), form)


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
