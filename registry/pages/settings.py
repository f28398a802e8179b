"""Settings page: members of projects, protected aliases, and how people and programs sign in."""

from __future__ import annotations

from typing import cast

from django import forms
from django.conf import settings as installation
from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_POST

from adapterhub.accounts import memberships
from adapterhub.accounts.models import ApiToken, Membership, NamedVersions, User
from adapterhub.accounts.signing_rules import require_fresh_sign_in
from adapterhub.api.listing import Listing
from adapterhub.api.pages import allowed, visible_rows
from adapterhub.api.permissions import actor_of
from adapterhub.core.tenancy import Scope
from registry.models import Alias
from registry.pages.forms import ReasonForm, cleaned

GUARDED = 20


class NamedVersionsForm(ReasonForm):
    """Form for the versions that callers may request by name; the password is needed without a recent sign-in."""

    named_versions = forms.ChoiceField(choices=NamedVersions.choices)
    password = forms.CharField(required=False, strip=False)


@login_required
def settings(request: HttpRequest) -> HttpResponse:
    """Show the person's roles and the protected aliases; to admins also their projects' members and settings."""
    led = allowed(request, Scope.ADMIN)
    members = Membership.objects.filter(project__in=led).select_related("project", "user")
    listing = Listing(
        request,
        members,
        search=("user__username", "project__slug", "project__name"),
        sorts={"person": "user__username", "project": "project__slug"},
        choices={"role": Membership.Role.choices},
    )
    aliases = visible_rows(request, Alias.objects.filter(policy__quorum__gte=1).select_related("project"))
    context = {
        "roles": Membership.objects.filter(user=cast(User, request.user)).select_related("project"),
        **listing.context(),
        "tokens": ApiToken.objects.usable().filter(project__in=led).count(),
        "guarded": aliases[:GUARDED],
        "guarded_count": aliases.count(),
        "led": led.filter(archived_at=None),
        "named_versions": NamedVersions.choices,
        "creatable": creatable(request),
        "issuer": installation.OIDC_ISSUER,
    }
    return render(request, "registry/settings.html", context)


def creatable(request: HttpRequest) -> list[tuple[str, str]]:
    """Return (route, text of the link) of the forms for new objects that this person may use in some project."""
    scopes = {
        scope for scope in (Scope.PUBLISH, Scope.OPERATE) if allowed(request, scope).filter(archived_at=None).exists()
    }
    forms = [
        ("new-adapter", "New adapter", Scope.PUBLISH),
        ("new-cluster", "New cluster", Scope.OPERATE),
        ("new-alias", "New alias", Scope.OPERATE),
    ]
    return [(route, label) for route, label, scope in forms if scope in scopes]


@login_required
@require_POST
def named_versions(request: HttpRequest, slug: str) -> HttpResponse:
    """Set which versions callers may name, of the project's adapters that have a protected alias.

    Raises Http404 for people who are not admins of the project, and NotAllowed without a recent sign-in or the
    password.
    """
    project = get_object_or_404(allowed(request, Scope.ADMIN), slug=slug)
    fields = cleaned(NamedVersionsForm(request.POST))
    require_fresh_sign_in(request, fields.pop("password"))
    memberships.set_named_versions(project, by=actor_of(request), **fields)
    messages.success(request, f"Callers of {project} may name {project.get_named_versions_display()} now.")
    return redirect("settings")
