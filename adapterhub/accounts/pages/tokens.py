"""The pages of API tokens: list, create, limit and revoke them, and approve another person's."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from django import forms
from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.db.models import Q
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils.timezone import now
from django.views.decorators.http import require_POST

from adapterhub.accounts import service_accounts
from adapterhub.accounts import tokens as verbs
from adapterhub.accounts.models import ApiToken, Project, User
from adapterhub.accounts.signer import client as signer
from adapterhub.accounts.signing_rules import Meaning, people_of
from adapterhub.api.listing import Listing
from adapterhub.api.pages import allowed, allowed_somewhere, offer, reason_in
from adapterhub.api.permissions import actor_of, require_scope
from adapterhub.audit.models import AuditEvent
from adapterhub.core.errors import Invalid
from adapterhub.core.forms import Form
from adapterhub.core.tenancy import APPROVE, Scope

SORTS = {"name": "name", "expires": "expires_at", "used": "last_used_at", "made": "created_at"}
WAITS = Q(needs_approval=True, approved_at=None)
STATES = {
    "in use": Q(revoked_at=None) & ~WAITS,
    "waiting": Q(revoked_at=None) & WAITS,
    "revoked": Q(revoked_at__isnull=False),
}


SCOPE_HELP = (
    "read: see what the project has. train: datasets, analyses, runs, evaluations. publish: adapters and versions. "
    "operate: clusters, aliases, rollouts. infer: ask through the router. audit: the audit trail. "
    "admin: members, tokens, webhooks."
)


class LimitsForm(Form):
    """A form for what a token may take of the routers; an empty field is no limit."""

    requests_per_s = forms.FloatField(
        min_value=0.001,
        max_value=1e6,
        required=False,
        label="Requests a second",
        help_text="Of its own, at the routers; empty: only its project's.",
    )
    tokens_per_min = forms.IntegerField(
        min_value=1,
        max_value=2**31 - 1,
        required=False,
        label="Tokens a minute",
        help_text="Of questions and answers; empty: only its project's.",
    )


class ChangedLimitsForm(LimitsForm):
    """A form for a token's new limits, and why."""

    reason = forms.CharField(max_length=2000, help_text="Recorded in the audit trail.")


class TokenForm(LimitsForm):
    """A form for a new token: project, name, scopes, days of validity, limits, service account and reason."""

    field_order = ("project", "name", "scopes", "days", "account", *verbs.LIMITS, "reason")

    project: forms.ModelChoiceField[Project] = forms.ModelChoiceField(
        queryset=None, to_field_name="slug", empty_label=None
    )
    name = forms.CharField(max_length=200, help_text="Where it is used: it stands in the audit trail.")
    scopes = forms.MultipleChoiceField(choices=Scope.choices, widget=forms.CheckboxSelectMultiple, help_text=SCOPE_HELP)
    days = forms.IntegerField(
        min_value=1, max_value=verbs.LONGEST_DAYS, initial=verbs.DAYS, help_text="Afterwards it is refused."
    )
    account: forms.ModelChoiceField[User] = forms.ModelChoiceField(
        queryset=None,
        to_field_name="username",
        required=False,
        label="Acts as",
        empty_label="its maker, and ends with their account",
        help_text="A service account outlives the people who made it.",
    )
    reason = forms.CharField(
        max_length=2000, required=False, help_text="Required for scope admin, which another person must approve."
    )

    def __init__(self, *args: Any, projects: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        offer(self, project=projects, account=service_accounts.of(projects))


class SigningForm(Form):
    """A form for a signature: its reason, its meaning, and the password unless the sign-in is recent."""

    reason = forms.CharField(max_length=2000, help_text="Recorded in the audit trail.")
    meaning = forms.ChoiceField(choices=Meaning.choices, initial=Meaning.APPROVED, label="Your signature means")
    password = forms.CharField(
        required=False,
        strip=False,
        widget=forms.PasswordInput(attrs={"autocomplete": "current-password"}),
        help_text="Required if you signed in more than ten minutes ago.",
    )


@login_required
def tokens(request: HttpRequest) -> HttpResponse:
    """List the tokens; create one on POST, whose text is in this response only.

    A refused form is shown again with its errors, as 422. Raises NotAllowed for who administers no project.
    """
    projects = allowed_somewhere(request, Scope.ADMIN)
    form = TokenForm(request.POST or None, projects=projects)
    secret = issued(request, form) if form.is_valid() else ""
    visible_tokens = ApiToken.objects.filter(project__in=projects).select_related("project", "account")
    listing = Listing(
        request, visible_tokens, search=("name", "id", "account__username", "project__slug"), sorts=SORTS, states=STATES
    )
    context = {"form": form, "shown": secret, "now": now(), **listing.context()}
    response = render(request, "accounts/tokens.html", context, status=422 if form.errors else 200)
    response["Cache-Control"] = "no-store"
    return response


def issued(request: HttpRequest, form: TokenForm) -> str:
    """Create the token and return its text; if it is invalid, return an empty text and set the form's error.

    Raises NotAllowed without scope `admin` in the project.
    """
    wanted = form.cleaned_data
    require_scope(request, wanted["project"], Scope.ADMIN)
    expires_at = now() + timedelta(days=wanted["days"])
    fields = {name: wanted[name] for name in ("project", "name", "scopes", "account", "reason", *verbs.LIMITS)}
    try:
        return verbs.create(**fields, expires_at=expires_at, by=actor_of(request))[1]
    except Invalid as error:
        form.add_error(error.field, error.detail)
        return ""


@login_required
def token(request: HttpRequest, pk: str) -> HttpResponse:
    """Show a token; a POST by another person than its maker approves it, before which one of scope admin does not work.

    Raises what `signer.decide` raises, and Http404 for who may not approve in its project.
    """
    queryset = ApiToken.objects.select_related("project", "created_by", "account", "approved_by")
    api_token = get_object_or_404(queryset, pk=pk, project__in=allowed(request, APPROVE))
    form = SigningForm(request.POST or None)
    if form.is_valid():
        signer.decide(api_token, "approve", request, **form.cleaned_data)
        messages.success(request, f"{api_token} works now.")
        return redirect("token", pk=pk)
    return token_page(request, api_token, form, ChangedLimitsForm(initial=verbs.limits_of(api_token)))


def token_page(request: HttpRequest, api_token: ApiToken, form: SigningForm, limits: ChangedLimitsForm) -> HttpResponse:
    """Return the page of a token with the forms that the user may send; status 422 if one of them has errors."""
    context = {
        "token": api_token,
        "form": form,
        "limits": limits if may_limit(request, api_token) else None,
        "granted": sorted(api_token.scopes_now()),
        "events": AuditEvent.objects.about(api_token).defer("canonical").fitting(),
        "may_sign": api_token.is_waiting
        and not api_token.revoked_at
        and request.user not in people_of([api_token.created_by] if api_token.created_by else []),
    }
    return render(request, "accounts/token.html", context, status=422 if form.errors or limits.errors else 200)


def may_limit(request: HttpRequest, api_token: ApiToken) -> bool:
    """Return True if the user may change the token's limits.

    The token must have scope infer, not admin, and not be revoked, and the user must administer its project.
    """
    is_open = Scope.INFER in api_token.scopes and Scope.ADMIN not in api_token.scopes and not api_token.revoked_at
    return is_open and allowed(request, Scope.ADMIN).filter(pk=api_token.project_id).exists()


@login_required
@require_POST
def limit(request: HttpRequest, pk: str) -> HttpResponse:
    """Change the limits of a token of a project that the user administers, then redirect to it.

    A refused form is shown again with its errors, as 422. Raises Http404 for any other token, and what `verbs.limit`
    raises.
    """
    api_token = get_object_or_404(ApiToken, pk=pk, project__in=allowed(request, Scope.ADMIN))
    form = ChangedLimitsForm(request.POST)
    if not form.is_valid():
        return token_page(request, api_token, SigningForm(), form)
    verbs.limit(api_token, by=actor_of(request), **form.cleaned_data)
    messages.success(request, f"The limits of {api_token.name} hold at the routers at once.")
    return redirect("token", pk=pk)


@login_required
@require_POST
def revoke(request: HttpRequest, pk: str) -> HttpResponse:
    """Revoke a token of a project that the user administers, then redirect to the list.

    Raises Http404 for any other token, and Invalid without a reason.
    """
    token = get_object_or_404(ApiToken, pk=pk, project__in=allowed(request, Scope.ADMIN))
    verbs.revoke(token, by=actor_of(request), reason=reason_in(request))
    messages.success(request, f"{token.name} no longer works.")
    return redirect("tokens")
