"""API tokens of the projects that somebody leads: list with last use, a new one shown once, revocation."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from django import forms
from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils.timezone import now
from django.views.decorators.http import require_POST

from adapterhub.accounts import tokens as verbs
from adapterhub.accounts.models import ApiToken, Scope
from adapterhub.api.pages import allowed, allowed_somewhere
from adapterhub.api.permissions import actor_of, require_scope


class TokenForm(forms.Form):
    """A name, a project, scopes, and the days that it lives."""

    project = forms.ModelChoiceField(queryset=None, to_field_name="slug", empty_label=None)
    name = forms.CharField(max_length=200)
    scopes = forms.MultipleChoiceField(choices=Scope.choices, widget=forms.CheckboxSelectMultiple)
    days = forms.IntegerField(min_value=1, max_value=verbs.LONGEST_DAYS, initial=verbs.DAYS)

    def __init__(self, *args: Any, projects: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["project"].queryset = projects


@login_required
def tokens(request: HttpRequest) -> HttpResponse:
    """The list, and on POST a new token, whose text is on this answer and never again."""
    projects = allowed_somewhere(request, Scope.ADMIN)
    form = TokenForm(request.POST or None, projects=projects)
    shown = issue(request, form.cleaned_data) if form.is_valid() else ""
    found = ApiToken.objects.filter(project__in=projects).select_related("project")
    context = {"form": form, "shown": shown, "now": now(), "tokens": found}
    response = render(request, "accounts/tokens.html", context, status=422 if form.errors else 200)
    response["Cache-Control"] = "no-store"
    return response


def issue(request: HttpRequest, wanted: dict[str, Any]) -> str:
    require_scope(request, wanted["project"], Scope.ADMIN)
    expires_at = now() + timedelta(days=wanted["days"])
    fields = {name: wanted[name] for name in ("project", "name", "scopes")}
    return verbs.create(**fields, expires_at=expires_at, by=actor_of(request))[1]


@login_required
@require_POST
def revoke(request: HttpRequest, pk: str) -> HttpResponse:
    """The token is refused from now on."""
    token = get_object_or_404(ApiToken, pk=pk, project__in=allowed(request, Scope.ADMIN))
    verbs.revoke(token, by=actor_of(request))
    return redirect("tokens")
