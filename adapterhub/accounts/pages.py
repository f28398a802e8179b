"""The door: name and password with a brake, or the way to the provider."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from django.conf import settings
from django.contrib.auth import views
from django.contrib.auth.forms import AuthenticationForm
from django.core.exceptions import ValidationError
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils.timezone import now

from adapterhub.audit.models import AuditEvent, UnsealedEvent
from adapterhub.audit.tags import Tag

ATTEMPTS, WITHIN = 10, timedelta(minutes=10)


class BrakedForm(AuthenticationForm):
    """Ten wrong passwords for a name within ten minutes, and it rests; the right one too, so nothing is learnt."""

    def clean(self) -> dict[str, Any]:
        if failures(self.cleaned_data.get("username", "")) >= ATTEMPTS:
            raise ValidationError("Too many attempts with this name: wait ten minutes.", code="throttled")
        return super().clean()


def failures(name: str) -> int:
    """Wrong passwords for the name of late, by any process, sealed or not yet."""
    since = now() - WITHIN
    sealed = AuditEvent.objects.filter(project=None, tag=Tag.SESSION_REFUSED, actor_name=name, at__gte=since)
    waiting = UnsealedEvent.objects.filter(
        project=None, fields__tag=Tag.SESSION_REFUSED, fields__actor_name=name, at__gte=since
    )
    return sealed.count() + waiting.count()


sign_in = views.LoginView.as_view(
    redirect_authenticated_user=True,
    authentication_form=BrakedForm,
    extra_context={"has_oidc": bool(settings.OIDC_ISSUER)},
)


def refused(request: HttpRequest) -> HttpResponse:
    """The provider did not let them in, or they turned back."""
    context = {"title": "Not signed in", "detail": "The sign-in was not completed. Try again, or ask your admin."}
    return render(request, "error.html", context, status=403)
