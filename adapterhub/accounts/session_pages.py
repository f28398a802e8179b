"""The page on which a person sees and ends their sessions."""

from __future__ import annotations

from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render

from adapterhub.accounts.models import SignIn
from adapterhub.accounts.sessions import end
from adapterhub.api.pages import reason_in
from adapterhub.api.permissions import actor_of


@login_required
def sessions(request: HttpRequest) -> HttpResponse:
    """Show the user's open sessions; a POST ends one, or all but this one."""
    here = request.session.session_key
    mine = SignIn.objects.open().filter(user=request.user)
    if request.method == "POST":
        reason = reason_in(request)
        wanted = mine.filter(pk=number(request.POST["end"])) if request.POST.get("end") else mine
        for sign_in in wanted.exclude(session_key=here):
            end(sign_in, by=actor_of(request), reason=reason)
    return render(request, "accounts/sessions.html", {"sign_ins": mine.all(), "here": here})


def number(text: str) -> int:
    return int(text) if text.isdecimal() and len(text) < 19 else 0
