"""The door: name and password with a brake, or the way to the provider."""

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
    """Name and password; a name that was tried too often rests."""

    def clean(self) -> dict[str, Any]:
        require_calm(self.cleaned_data.get("username", ""))
        return super().clean()


class SignIn(views.LoginView):
    """A right password signs in, or leads to the second step."""

    redirect_authenticated_user = True
    authentication_form = BrakedForm
    extra_context = {"has_oidc": bool(settings.OIDC_ISSUER)}

    def post(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        # Each try costs a slow hash, also with a new name each time.
        require_room_for_stranger(request)
        return super().post(request, *args, **kwargs)

    def form_valid(self, form: AuthenticationForm) -> HttpResponse:
        # What an attempt through the provider left there is not how this person came.
        self.request.session.pop("auth_method", None)
        if is_needed(form.get_user()):
            return begin(self.request, form.get_user(), self.get_success_url())
        return super().form_valid(form)


sign_in = SignIn.as_view()


def admin_sign_in(request: HttpRequest) -> HttpResponse:
    """The admin pages have no door of their own: it would pass by the brake and the second step."""
    if request.user.is_authenticated:
        context = {"title": "Not for you", "detail": "The admin pages need an administrator of the installation."}
        return render(request, "error.html", context, status=403)
    return redirect_to_login(request.GET.get("next", reverse("admin:index")))


def refused(request: HttpRequest) -> HttpResponse:
    """The provider did not let them in, or they turned back."""
    context = {"title": "Not signed in", "detail": "The sign-in was not completed. Try again, or ask your admin."}
    return render(request, "error.html", context, status=403)
