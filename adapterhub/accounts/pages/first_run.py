"""The page behind the setup link: it creates the first administrator and signs them in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django import forms
from django.contrib.auth import login
from django.contrib.auth.forms import BaseUserCreationForm, UsernameField
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse

from adapterhub.accounts import setup_link
from adapterhub.accounts.models import User
from adapterhub.accounts.pages.second_factor import BACKEND, begin
from adapterhub.accounts.second_factor import is_needed
from adapterhub.api.throttling import require_room_for_stranger
from adapterhub.core.tokens import secret_hash

# Only the type stubs have this class take a parameter.
if TYPE_CHECKING:
    AccountForm = BaseUserCreationForm[User]
else:
    AccountForm = BaseUserCreationForm

HASHED = "setup_link"


class FirstAdministratorForm(AccountForm):
    """A form for the first account: name, mail address and password."""

    email = forms.EmailField(
        label="Mail address", help_text="Names you as a signer: an approval needs a person who can be told apart."
    )

    class Meta:
        model = User
        fields = ("username", "email")
        field_classes = {"username": UsernameField}


def open_link(request: HttpRequest, secret: str) -> HttpResponse:
    """Store in the session that this browser opened the setup link; redirect to a URL without the secret.

    A link that does not work is answered as `closed` does. Raises TooMany for a caller with too many requests.
    """
    require_room_for_stranger(request)
    hashed = secret_hash(secret)
    if not setup_link.admits(hashed):
        return closed(request)
    request.session[HASHED] = hashed
    return redirect("first-administrator")


def first_administrator(request: HttpRequest) -> HttpResponse:
    """Create the first administrator, sign them in and redirect to the first steps.

    A second factor is set up first if one is needed. A refused form is shown again, as 422; a link that does not work
    is answered as `closed` does.
    """
    require_room_for_stranger(request)
    hashed = request.session.get(HASHED, "")
    if not setup_link.admits(hashed):
        return closed(request)
    form = FirstAdministratorForm(request.POST or None)
    if not form.is_valid():
        response = render(request, "accounts/setup.html", {"form": form}, status=422 if form.errors else 200)
        response["Cache-Control"] = "no-store"
        return response
    fields = form.cleaned_data
    user = setup_link.create_first_administrator(
        hashed, username=fields["username"], email=fields["email"], password=fields["password1"]
    )
    if is_needed(user):
        return begin(request, user, reverse("first-steps"))
    login(request, user, backend=BACKEND)
    return redirect("first-steps")


def closed(request: HttpRequest) -> HttpResponse:
    """Return a 410 page on how to get another setup link or, once there is an account, a redirect to the sign-in."""
    if not setup_link.is_empty():
        return redirect("login")
    return render(request, "accounts/setup_closed.html", status=410)
