"""The colour theme: the reader's choice, else that of their system."""

from __future__ import annotations

from urllib.parse import urlsplit

from django.conf import settings
from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.views.decorators.http import require_POST

COOKIE = "theme"
THEMES = ("light", "dark")
A_YEAR_S = 365 * 24 * 3600


def theme(request: HttpRequest) -> dict[str, str]:
    """Return {theme: light, dark, or empty for the system's choice}, as a context processor."""
    chosen = request.COOKIES.get(COOKIE, "")
    return {"theme": chosen if chosen in THEMES else ""}


@login_required
@require_POST
def choose(request: HttpRequest) -> HttpResponse:
    """Store the chosen theme in a cookie, and redirect to the page that sent the form, or to the overview.

    Any other value than those of THEMES deletes the cookie, which restores the system's choice.
    """
    back = urlsplit(request.headers.get("Referer", ""))
    is_own_page = back.netloc == request.get_host()
    response = redirect(
        f"/{back.path.lstrip('/')}{'?' + back.query if back.query else ''}" if is_own_page else "overview"
    )
    chosen = request.POST.get("theme", "")
    if chosen in THEMES:
        response.set_cookie(COOKIE, chosen, max_age=A_YEAR_S, samesite="Lax", httponly=True, secure=settings.HTTPS)
    else:
        response.delete_cookie(COOKIE, samesite="Lax")
    return response
