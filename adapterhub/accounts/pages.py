"""The sign-in pages: password with lockout, or the OpenID Connect provider."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.contrib.auth import views
from django.contrib.auth.forms import AuthenticationForm
from django.contrib.auth.views import redirect_to_login
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import reverse

from adapterhub.accounts.login_lockout import require_calm
from adapterhub.accounts.second_factor import is_needed
from adapterhub.accounts.second_factor_pages import begin
from adapterhub.api.throttling import require_room_for_stranger


class BrakedForm(AuthenticationForm):
    """A sign-in form that refuses a name after too many wrong attempts."""

    def clean(self) -> dict[str, Any]:
        """Refuse while the account is locked after failed attempts, before the password is hashed."""
        require_calm(self.cleaned_data.get("username", ""))
        return super().clean()


class SignIn(views.LoginView):
    """The sign-in page: a right password signs in, or leads to the second factor if one is needed."""

    redirect_authenticated_user = True
    authentication_form = BrakedForm
    extra_context = {"has_oidc": bool(settings.OIDC_ISSUER)}

    def post(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        """Limit the attempts of a caller, then sign in."""
        # Each attempt costs a slow hash, whatever the name.
        require_room_for_stranger(request)
        return super().post(request, *args, **kwargs)

    def form_valid(self, form: AuthenticationForm) -> HttpResponse:
        """Ask for the second factor if the user has one, else complete the sign-in."""
        # A value left by an unfinished sign-in through the provider must not describe this one.
        self.request.session.pop("auth_method", None)
        if is_needed(form.get_user()):
            return begin(self.request, form.get_user(), self.get_success_url())
        return super().form_valid(form)


sign_in = SignIn.as_view()


def admin_sign_in(request: HttpRequest) -> HttpResponse:
    """Redirect from the admin's own sign-in, which would bypass lockout and second factor, to the product's.

    Signed-in users who may not use the admin get a 403 page.
    """
    if request.user.is_authenticated:
        context = {"title": "Not for you", "detail": "The admin pages need an administrator of the installation."}
        return render(request, "error.html", context, status=403)
    return redirect_to_login(request.GET.get("next", reverse("admin:index")))


def refused(request: HttpRequest) -> HttpResponse:
    """Show that the provider refused the sign-in or the user cancelled it."""
    context = {"title": "Not signed in", "detail": "The sign-in was not completed. Try again, or ask your admin."}
    return render(request, "error.html", context, status=403)
