"""The page on which a person sees and ends their sessions."""

from __future__ import annotations

from typing import cast

from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render

from adapterhub.accounts.models import SignIn, User
from adapterhub.accounts.sessions import end
from adapterhub.api.pages import reason_in
from adapterhub.api.permissions import actor_of


@login_required
def sessions(request: HttpRequest) -> HttpResponse:
    """Show the user's open sessions; a POST ends the one that its field `end` names, or without that field all of them.

    The current session is never ended. Raises Invalid for a POST without a reason.
    """
    current_key = request.session.session_key
    own_sessions = SignIn.objects.open().filter(user=cast(User, request.user))
    if request.method == "POST":
        reason = reason_in(request)
        wanted = own_sessions.filter(pk=number(request.POST["end"])) if request.POST.get("end") else own_sessions
        for sign_in in wanted.exclude(session_key=current_key):
            end(sign_in, by=actor_of(request), reason=reason)
    return render(request, "accounts/sessions.html", {"sign_ins": own_sessions.all(), "here": current_key})


def number(text: str) -> int:
    """Parse a database id; 0, which no row has, for any other text."""
    return int(text) if text.isdecimal() and len(text) < 19 else 0
