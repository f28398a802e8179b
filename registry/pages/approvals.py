"""Pages of approvals: the inbox, and one request with the evidence that a signer must see."""

from __future__ import annotations

from typing import Any, cast

from django import forms
from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.db.models import F
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_POST

from adapterhub.accounts.models import ApiToken, User
from adapterhub.accounts.signer import client as signer
from adapterhub.accounts.signing_rules import Meaning
from adapterhub.api.listing import Listing
from adapterhub.api.pages import allowed, visible_or_404, visible_rows
from adapterhub.api.permissions import actor_of, require_scope, scopes_in
from adapterhub.audit.models import AuditEvent
from adapterhub.core.tenancy import APPROVE, Scope
from registry.models import Approval, Rollout, Signature, without_bodies
from registry.models.approval import ApprovalKind, ApprovalStatus
from registry.models.decision import MEASURED, verdicts_of
from registry.models.judgement import Numbers
from registry.pages.forms import ReasonForm, cleaned
from registry.pages.rollout_figures import verdict_table
from registry.pages.rollouts import find_rollout


class PersonForm(ReasonForm):
    """Form for a decision: its reason, and the password unless the person signed in recently."""

    password = forms.CharField(
        required=False,
        strip=False,
        widget=forms.PasswordInput(attrs={"autocomplete": "current-password"}),
        help_text="Required if you signed in more than ten minutes ago.",
    )


class SigningForm(PersonForm):
    """Form for a signature; `seen` is the digest of the evidence that the page showed."""

    meaning = forms.ChoiceField(choices=Meaning.choices, initial=Meaning.APPROVED, label="Your signature means")
    seen = forms.CharField(max_length=64, widget=forms.HiddenInput)


VERBS = {
    "approve": (SigningForm, APPROVE),
    "reject": (PersonForm, APPROVE),
    "review": (PersonForm, APPROVE),
    "break-glass": (PersonForm, Scope.OPERATE),
}


@login_required
def inbox(request: HttpRequest) -> HttpResponse:
    """List the approvals, undecided ones first unless the query string sorts, and the tokens that wait for approval."""
    approvals = visible_rows(
        request, Approval.objects.select_related("project", "alias__project", "candidate__adapter__project")
    )
    approvals = without_bodies(approvals, "candidate")
    ordered = approvals.order_by(F("decided_at").desc(nulls_first=True), "-created_at")
    listing = Listing(
        request,
        ordered,
        search=("alias__name", "reason", "author_name", "candidate__served_name"),
        sorts={"alias": "alias__name", "asked": "created_at", "decided": "decided_at"},
        choices={"status": ApprovalStatus.choices, "kind": ApprovalKind.choices},
    )
    tokens = ApiToken.objects.waiting().filter(project__in=allowed(request, APPROVE)).select_related("created_by")
    return render(request, "registry/approvals.html", {"tokens": tokens, **listing.context()})


def find(request: HttpRequest, pk: str) -> Approval:
    """Return the approval in the URL. Raises Http404 if the person does not see it."""
    related = (
        "project",
        "alias__project",
        "rollout__alias",
        "rollout__stable",
        "rollout__candidate",
        "candidate__adapter__project",
    )
    queryset = Approval.objects.select_related(*related)
    return visible_or_404(request, queryset, pk=pk)


@login_required
def approval(request: HttpRequest, pk: str) -> HttpResponse:
    """Show a request for approval: its evidence, signatures, events, and the forms to decide.

    Raises Http404 if the person does not see it.
    """
    viewed = find(request, pk)
    scopes = scopes_in(request, viewed.project)
    context = {
        "approval": viewed,
        "signatures": signatures_of(viewed),
        "may_sign": APPROVE in scopes and viewed.may_be_signed_by(cast(User, request.user)),
        "may_break": Scope.OPERATE in scopes,
        "signing": SigningForm(initial={"seen": viewed.bound}, auto_id="sign_%s"),
        "person": PersonForm(auto_id="person_%s"),
        "changed": viewed.status in ("pending", "approved") and viewed.bound != viewed.bound_now(),
        "events": AuditEvent.objects.about(viewed).defer("canonical").fitting(),
        "verdicts": verdicts_for(viewed),
    }
    return render(request, "registry/approval.html", context)


def signatures_of(approval: Approval) -> list[tuple[Signature, dict[str, Any] | None]]:
    """Return pairs of each signature and the table of the verdicts frozen with it, or None if it has none."""
    rollout = approval.rollout
    return [
        (signature, verdict_table(rollout, signature.verdicts) if rollout and signature.verdicts else None)
        for signature in approval.signatures.all()
    ]


def verdicts_for(approval: Approval) -> dict[str, Any] | None:
    """Return the table of verdicts of the approval's rollout; None without a rollout, or for one never opened.

    The verdicts are computed now while the rollout loads or serves, otherwise those of its last decision.
    """
    if (rollout := approval.rollout) is None:
        return None
    numbers = Numbers.of(rollout, with_split=False) if rollout.status in MEASURED else None
    verdicts = verdicts_of(rollout, numbers=numbers)
    return verdict_table(rollout, verdicts) if verdicts else None


@login_required
@require_POST
def decide(request: HttpRequest, pk: str, verb: str) -> HttpResponse:
    """Approve, reject or review the approval, or break the glass, as `verb` (a key of VERBS) says; redirect to it.

    Raises Http404 for another verb or if the person does not see the approval, NotAllowed without the verb's scope and
    for a person who may not sign or has not signed in recently, and as the approval's method does.
    """
    if verb not in VERBS:
        raise Http404
    form, scope = VERBS[verb]
    decided = find(request, pk)
    require_scope(request, decided.project, scope)
    signer.decide(decided, verb.replace("-", "_"), request, **cleaned(form(request.POST)))
    messages.success(request, f"The {decided} is {decided.get_status_display().lower()}.")
    return redirect("approval", pk=pk)


@login_required
@require_POST
def ask(request: HttpRequest, pk: str) -> HttpResponse:
    """Request approval of a rollout's plan and promotion, also again after a lapse, and redirect to the request.

    Raises Http404 if the person does not see the rollout, NotAllowed without scope operate, and as
    `Rollout.request_approval` does.
    """
    rollout: Rollout = find_rollout(request, pk)
    require_scope(request, rollout.alias.project, Scope.OPERATE)
    requested = rollout.request_approval(by=actor_of(request), **cleaned(ReasonForm(request.POST)))
    return redirect("approval", pk=requested.pk)
