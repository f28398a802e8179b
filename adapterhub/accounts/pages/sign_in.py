"""The sign-in pages: password with lockout, or the OpenID Connect provider."""

from __future__ import annotations

import math
from typing import Any, cast

from django.conf import settings
from django.contrib import admin
from django.contrib.auth import views
from django.contrib.auth.forms import AuthenticationForm, PasswordChangeForm
from django.contrib.auth.views import redirect_to_login
from django.core.exceptions import ValidationError
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.template.response import TemplateResponse
from django.urls import reverse, reverse_lazy

from adapterhub.accounts.login_lockout import is_typed_password
from adapterhub.accounts.models import User
from adapterhub.accounts.pages.second_factor import begin
from adapterhub.accounts.second_factor import is_needed
from adapterhub.accounts.sessions import note
from adapterhub.accounts.setup_link import is_empty
from adapterhub.api.permissions import actor_of
from adapterhub.api.throttling import require_room_for_stranger
from adapterhub.audit.models import AuditEvent
from adapterhub.audit.tags import Tag
from adapterhub.core.errors import TooMany
from adapterhub.core.forms import PlainLabels


class SignInForm(PlainLabels, AuthenticationForm):
    """A sign-in form that says how long to wait after too many wrong attempts; `wait_s` is 0 otherwise."""

    wait_s = 0.0

    def clean(self) -> dict[str, Any]:
        """Check name and password. Raises ValidationError, also while the name is locked out at this address."""
        try:
            return super().clean()
        except TooMany as error:
            self.wait_s = error.wait_s
            raise ValidationError(error.detail, code="throttled") from None


class SignIn(views.LoginView):
    """The sign-in page: a right password signs in, or leads to the second factor if one is needed."""

    redirect_authenticated_user = True
    authentication_form = SignInForm
    extra_context = {"has_oidc": bool(settings.OIDC_ISSUER)}

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        """Add `is_empty`: True while nobody has an account, so that the page points to the setup link."""
        return {**super().get_context_data(**kwargs), "is_empty": is_empty()}

    def post(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        """Sign in. Raises TooMany for a caller with too many attempts, whatever the names."""
        # Each attempt costs a slow hash, whatever the name.
        require_room_for_stranger(request)
        return super().post(request, *args, **kwargs)

    def form_valid(self, form: AuthenticationForm) -> HttpResponse:
        """Complete the sign-in, or redirect to the second factor if one is needed."""
        # A value left by an unfinished sign-in through the provider must not describe this one.
        self.request.session.pop("auth_method", None)
        if is_needed(form.get_user()):
            return begin(self.request, form.get_user(), self.get_success_url())
        return super().form_valid(form)

    def form_invalid(self, form: AuthenticationForm) -> HttpResponse:
        """Show the form's errors; while the name is locked out as 429 with the wait in Retry-After."""
        response, wait_s = super().form_invalid(form), cast(SignInForm, form).wait_s
        if wait_s:
            response.status_code = 429
            response["Retry-After"] = str(math.ceil(wait_s))
        return response


sign_in = SignIn.as_view()


def admin_sign_in(request: HttpRequest) -> HttpResponse:
    """Redirect from the admin's own sign-in, which would bypass lockout and second factor, to the product's.

    Users who are signed in, but may not use the admin, get a 403 page.
    """
    if request.user.is_authenticated:
        context = {
            "title": "Not for you",
            "detail": "Only administrators of the installation can open the admin pages.",
        }
        return render(request, "error.html", context, status=403)
    return redirect_to_login(request.GET.get("next", reverse("admin:index")))


class NewPasswordForm(PlainLabels, PasswordChangeForm):
    """A form to change one's own password. The old one is checked with lockout."""

    def __init__(self, *args: Any, request: HttpRequest, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.request = request

    def clean_old_password(self) -> str:
        """Return the old password; a wrong one counts as a failed attempt.

        Raises ValidationError for a wrong password and while locked out.
        """
        password: str = self.cleaned_data["old_password"]
        if not is_typed_password(self.request, password):
            raise ValidationError(self.error_messages["password_incorrect"], code="password_incorrect")
        return password


class NewPassword(views.PasswordChangeView):
    """The admin's page to change one's own password: the old one is checked with lockout, and the change recorded."""

    form_class = NewPasswordForm
    template_name = "registration/password_change_form.html"
    success_url = reverse_lazy("admin:password_change_done")

    def get_form_kwargs(self) -> dict[str, Any]:
        """Return the form's arguments with the request, by whose address the lockout counts."""
        return {**super().get_form_kwargs(), "request": self.request}

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        """Return the context, with the variables that every page of the admin needs."""
        return {**admin.site.each_context(self.request), **super().get_context_data(**kwargs)}

    @transaction.atomic
    def form_valid(self, form: PasswordChangeForm) -> HttpResponse:
        """Change the password, record the audit event, and list the session, whose key has changed."""
        after, user = {"changed": ["password"]}, cast(User, self.request.user)
        AuditEvent.record(Tag.USER_CHANGED, user, by=actor_of(self.request), project=None, after=after)
        response = super().form_valid(form)
        # The session has another key now.
        note(self.request, user)
        return response


class HubAdmin(admin.AdminSite):
    """The admin site, with NewPassword as its page to change one's own password."""

    def password_change(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> TemplateResponse:
        """Return our page to change one's own password."""
        return cast(TemplateResponse, NewPassword.as_view(extra_context=extra_context)(request))


def refused(request: HttpRequest) -> HttpResponse:
    """Return a 403 page which says that the sign-in through the provider was refused or cancelled."""
    context = {"title": "Not signed in", "detail": "The sign-in was not completed. Try again, or ask your admin."}
    return render(request, "error.html", context, status=403)
