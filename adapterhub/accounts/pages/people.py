"""Pages of accounts for administrators of the installation, and the link by which a person chooses a password."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from django import forms
from django.contrib import messages
from django.contrib.auth import login
from django.contrib.auth.decorators import login_required
from django.contrib.auth.forms import SetPasswordForm
from django.contrib.auth.tokens import default_token_generator
from django.db import transaction
from django.db.models import Q
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.views.decorators.http import require_POST

from adapterhub.accounts import people
from adapterhub.accounts.invitations import verbs as invitations
from adapterhub.accounts.models import Membership, Project, User
from adapterhub.accounts.pages.second_factor import BACKEND, begin
from adapterhub.accounts.second_factor import is_needed
from adapterhub.api.listing import Listing
from adapterhub.api.pages import errors_on, offer, preselect, reason_in
from adapterhub.api.permissions import actor_of
from adapterhub.api.throttling import require_room_for_stranger
from adapterhub.core.errors import NotAllowed
from adapterhub.core.forms import Form
from adapterhub.core.tenancy import ROLE_HELP

LINK = "welcome_link"

# Only the type stubs have this class take a parameter.
if TYPE_CHECKING:
    PasswordForm = SetPasswordForm[User]
else:
    PasswordForm = SetPasswordForm


class PersonForm(Form):
    """A form for a new account, and the role that the person is invited to."""

    username = forms.CharField(
        max_length=150, label="User name", validators=[User.username_validator], help_text="Letters, digits and . + - _"
    )
    email = forms.EmailField(label="Mail address", help_text="Approvals need it: it tells people apart.")
    project = forms.ModelChoiceField(
        Project.objects.none(),
        to_field_name="slug",
        required=False,
        empty_label="none",
        label="Invite to project",
        help_text="The person has the role once they accept.",
    )
    role = forms.ChoiceField(choices=Membership.Role.choices, label="Role in it", help_text=ROLE_HELP)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        offer(self, project=Project.objects.filter(archived_at=None))
        preselect(self, "project")


def require_administrator(request: HttpRequest) -> None:
    """Raise NotAllowed unless the user is an administrator of the installation."""
    if not request.user.is_superuser:
        raise NotAllowed("Only an administrator of the installation manages accounts.")


@login_required
def accounts(request: HttpRequest) -> HttpResponse:
    """List the people's accounts; a POST creates one, whose link is in this response and never again.

    A refused form is shown again with its errors, as 422. Raises NotAllowed for who is no administrator of the
    installation.
    """
    require_administrator(request)
    form = PersonForm(request.POST or None)
    link = ""
    if form.is_valid():
        with errors_on(form), transaction.atomic():
            link = created(request, form.cleaned_data)
            messages.success(request, f"{form.cleaned_data['username']} has an account.")
            form = PersonForm()
    listing = Listing(
        request,
        User.objects.filter(is_service=False).order_by("username"),
        search=("username", "email"),
        sorts={"name": "username", "seen": "last_login"},
        states={"active": Q(is_active=True), "closed": Q(is_active=False)},
    )
    context = {"form": form, "shown": link, **listing.context()}
    response = render(request, "accounts/people.html", context, status=422 if form.errors else 200)
    response["Cache-Control"] = "no-store"
    return response


def created(request: HttpRequest, fields: dict[str, Any]) -> str:
    """Create the account, invite the person if a project is chosen, and return the URL to choose a password.

    Raises Conflict for a used name, and what `invitations.send` raises.
    """
    by = actor_of(request)
    person = people.create(fields["username"], fields["email"], by=by)
    if fields["project"]:
        invitations.send(fields["project"], person.username, fields["role"], by=by)
    return link_for(request, person)


def link_for(request: HttpRequest, person: User) -> str:
    """Return the link by which the person chooses a password; it ends with its use, and after three days."""
    return request.build_absolute_uri(reverse("welcome", args=[person.pk, default_token_generator.make_token(person)]))


@login_required
@require_POST
def move_account(request: HttpRequest, pk: int, verb: str) -> HttpResponse:
    """Close an account with `verb` close, open it again with open, then redirect to the list.

    With any other verb the password is discarded, and a link to choose a new one is shown once. Raises NotAllowed for
    who is no administrator, Http404, Invalid without a reason, and Conflict for closing one's own account.
    """
    require_administrator(request)
    person = get_object_or_404(User, pk=pk, is_service=False)
    reason, by = reason_in(request), actor_of(request)
    if verb == "close":
        people.close(person, by=by, reason=reason)
        messages.success(request, f"{person} can no longer sign in.")
    elif verb == "open":
        people.reopen(person, by=by, reason=reason)
        messages.success(request, f"{person} can sign in again.")
    else:
        people.forget_password(person, by=by, reason=reason)
        messages.success(request, f"{person} chooses a password here, once: {link_for(request, person)}")
    return redirect("people")


def welcome(request: HttpRequest, pk: int, token: str) -> HttpResponse:
    """Store the link in the session, unchecked, and redirect to the choice of a password, whose URL holds no secret."""
    require_room_for_stranger(request)
    request.session[LINK] = [pk, token]
    return redirect("choose-password")


def choose_password(request: HttpRequest) -> HttpResponse:
    """Let the person of the link choose a password, sign them in and redirect to their invitations.

    A second factor is asked for first if one is needed. A link that is used, over or of a closed account gets a 410
    page.
    """
    require_room_for_stranger(request)
    pk, token = request.session.get(LINK, (0, ""))
    person = User.objects.filter(pk=pk, is_active=True, is_service=False).first()
    if person is None or not default_token_generator.check_token(person, token):
        context = {"title": "This link no longer works", "detail": "It works once, for three days: ask for another."}
        return render(request, "error.html", context, status=410)
    form = PasswordForm(person, request.POST or None)
    if not form.is_valid():
        filled: dict[str, Any] = {"form": form, "person": person}
        response = render(request, "accounts/choose_password.html", filled, status=422 if form.errors else 200)
        response["Cache-Control"] = "no-store"
        return response
    people.choose_password(person, form.cleaned_data["new_password1"], by=person.as_actor("welcome link"))
    if is_needed(person):
        return begin(request, person, reverse("invitations"))
    login(request, cast(Any, person), backend=BACKEND)
    return redirect("invitations")
