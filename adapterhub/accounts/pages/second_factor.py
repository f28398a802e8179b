"""The second step of a sign-in, and the page on which a person sets up or removes the second factor."""

from __future__ import annotations

import time
from typing import Any, cast

import segno
from django import forms
from django.contrib.auth import login
from django.contrib.auth.decorators import login_required
from django.core.exceptions import ValidationError
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render

from adapterhub.accounts import second_factor
from adapterhub.accounts.login_lockout import (
    as_form_error,
    claim,
    code_brakes,
    forget,
    is_typed_password,
    note_refused,
)
from adapterhub.accounts.models import SecondFactor, User
from adapterhub.accounts.signing_rules import has_signed_in_lately
from adapterhub.api.permissions import actor_of
from adapterhub.core.errors import Invalid, NotAllowed
from adapterhub.core.forms import Form

HALF, SECRET = "half_signed_in", "second_factor_secret"
HALF_S = 300
BACKEND = "adapterhub.accounts.authentication.PasswordBackend"
METHOD = "password+code"


class CodeForm(Form):
    """A form for a code of the app or a recovery code."""

    code = forms.CharField(
        max_length=20,
        widget=forms.TextInput(attrs={"autocomplete": "one-time-code", "inputmode": "text", "autofocus": True}),
    )


class ProvingForm(CodeForm):
    """A form for a code that is checked against the user's second factor, with lockout."""

    def __init__(self, *args: Any, user: User, request: HttpRequest, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.user, self.request = user, request

    def clean_code(self) -> str:
        """Return the code after checking it; a valid one is used up, a wrong one counts as a failed attempt.

        Raises ValidationError for a wrong code and while locked out.
        """
        code, brakes = self.cleaned_data["code"], code_brakes(self.user, self.request)
        with as_form_error():
            claim(brakes)
        if not second_factor.admits(self.user, code):
            note_refused(self.user.get_username())
            raise ValidationError("The code is wrong or has been used already: wait for the next one.")
        forget(brakes)
        return str(code)


class PasswordMixin(Form):
    """A form that asks for the password afresh: whoever finds an open session cannot change the second factor.

    Somebody without a password signs in again at the provider instead, which `require_afresh` checks.
    """

    password = forms.CharField(
        strip=False,
        widget=forms.PasswordInput(attrs={"autocomplete": "current-password"}),
        help_text="Required, even if you just signed in.",
    )
    request: HttpRequest

    def clean_password(self) -> str:
        """Return the user's password; a wrong one counts as a failed attempt.

        Raises ValidationError for a wrong password and while locked out.
        """
        password: str = self.cleaned_data["password"]
        if not is_typed_password(self.request, password):
            raise ValidationError("This is not your password.")
        return password


class SettingUpForm(PasswordMixin, CodeForm):
    """A form that sets up the second factor: the password, and a code that the app shows."""

    field_order = ("password", "code")

    def __init__(self, *args: Any, request: HttpRequest, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.request = request
        if not asks_for_password(request):
            del self.fields["password"]


class RemovingForm(PasswordMixin, ProvingForm):
    """A form that removes the second factor: a reason, the password and a code."""

    reason = forms.CharField(max_length=2000, help_text="Recorded in the audit trail.")
    field_order = ("reason", "password", "code")

    def __init__(self, *args: Any, request: HttpRequest, **kwargs: Any) -> None:
        super().__init__(*args, request=request, **kwargs)
        if not asks_for_password(request):
            del self.fields["password"]

    def clean_code(self) -> str:
        """Return the code; check it, which uses up a valid one, only if the other fields have no error.

        Raises ValidationError for a wrong code and while locked out.
        """
        code: str = self.cleaned_data["code"]
        return code if self.errors else super().clean_code()


def asks_for_password(request: HttpRequest) -> bool:
    """Return True for a signed-in user with a password.

    In the second step of a sign-in nobody is signed in yet, and the password was typed a moment ago.
    """
    return bool(request.user.is_authenticated and request.user.has_usable_password())


def require_afresh(request: HttpRequest) -> None:
    """Raise NotAllowed if the user has no password to type and has not signed in within ten minutes."""
    if not (asks_for_password(request) or has_signed_in_lately(request)):
        raise NotAllowed(
            "A second factor needs a sign-in of the last ten minutes: sign out, sign in and come back.",
            code="reauthentication_required",
        )


def begin(request: HttpRequest, user: User, lands_at: str) -> HttpResponse:
    """Store in the session that the password was right, and redirect to the second step; nobody is signed in yet.

    `lands_at` is the URL to which the completed sign-in leads.
    """
    request.session[HALF] = {"user": user.pk, "at": time.time(), "lands_at": lands_at}
    return redirect("second-step")


def half_signed_in(request: HttpRequest) -> User | None:
    """Return the user whose password was right within the last five minutes in this session, or None."""
    half = request.session.get(HALF)
    if request.user.is_authenticated or not half or time.time() - half["at"] > HALF_S:
        return None
    return User.objects.filter(pk=half["user"], is_active=True).first()


def second_step(request: HttpRequest) -> HttpResponse:
    """Ask for the code and sign in, or have an administrator without a second factor set one up first.

    Redirects to the sign-in page if the password was not typed within five minutes.
    """
    user = half_signed_in(request)
    if user is None:
        return redirect("login")
    if not SecondFactor.objects.filter(user=user).exists():
        return set_up(request, user)
    form = ProvingForm(request.POST or None, user=user, request=request)
    if form.is_valid():
        return redirect(complete(request, user))
    return render(request, "accounts/second_step.html", {"form": form}, status=422 if form.errors else 200)


def complete(request: HttpRequest, user: User) -> str:
    """Sign the user in, in a session that no longer waits for a code; return the URL that the sign-in leads to."""
    lands_at: str = request.session.pop(HALF)["lands_at"]
    request.session["auth_method"] = METHOD
    login(request, user, backend=BACKEND)
    return lands_at


@login_required
def manage(request: HttpRequest) -> HttpResponse:
    """Set up the second factor of the signed-in user, or remove it with one of its codes.

    A user with a password has to type it; one without needs a sign-in of the last ten minutes, else NotAllowed is
    raised.
    """
    require_afresh(request)
    user = cast(User, request.user)
    factor = SecondFactor.objects.filter(user=user).first()
    if factor is None:
        return set_up(request, user)
    form = RemovingForm(request.POST or None, user=user, request=request)
    if form.is_valid():
        second_factor.disable(user, by=actor_of(request), reason=form.cleaned_data["reason"])
        return redirect("second-factor")
    context = {"form": form, "factor": factor}
    return render(request, "accounts/second_factor.html", context, status=422 if form.errors else 200)


def set_up(request: HttpRequest, user: User) -> HttpResponse:
    """Show the secret as a QR code and as text; after a right code of the app, the recovery codes, once.

    Also completes a sign-in that waited for the second factor.
    """
    secret = request.session.setdefault(SECRET, second_factor.new_secret())
    form = SettingUpForm(request.POST or None, request=request)
    codes = enabled(request, user, secret, form) if form.is_valid() else []
    lands_at = complete(request, user) if codes and HALF in request.session else ""
    address = second_factor.address_for_app(user, secret)
    context = {
        "form": form,
        "secret": secret,
        "picture": segno.make(address).svg_data_uri(scale=5, light="white"),
        "codes": codes,
        "lands_at": lands_at,
        "is_forced": HALF in request.session,
    }
    response = render(request, "accounts/set_up_factor.html", context, status=422 if form.errors else 200)
    response["Cache-Control"] = "no-store"
    return response


def enabled(request: HttpRequest, user: User, secret: str, form: CodeForm) -> list[str]:
    """Enable the second factor and return the recovery codes; on a wrong code return none and set the form's error."""
    try:
        codes = second_factor.enable(user, secret, form.cleaned_data["code"], by=user.as_actor("password"))
    except Invalid as error:
        form.add_error("code", error.detail)
        return []
    del request.session[SECRET]
    return codes
