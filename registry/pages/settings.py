"""Settings page: members of projects, protected aliases, and how people and programs sign in."""

from __future__ import annotations

from typing import cast

from django.conf import settings as installation
from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render

from adapterhub.accounts.models import ApiToken, Membership, User
from adapterhub.api.listing import Listing
from adapterhub.api.pages import allowed, visible_rows
from adapterhub.core.tenancy import Scope
from registry.models import Alias

PAGE = 50
GUARDED = 20


@login_required
def settings(request: HttpRequest) -> HttpResponse:
    """Show the person's own roles, and to admins the members of their projects."""
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
        **listing.context(PAGE),
        "tokens": ApiToken.objects.usable().filter(project__in=led).count(),
        "guarded": aliases[:GUARDED],
        "guarded_count": aliases.count(),
        "issuer": installation.OIDC_ISSUER,
    }
    return render(request, "registry/settings.html", context)
