"""The page of the history of roles, taken from the audit trail."""

from __future__ import annotations

from django.contrib.auth.decorators import login_required
from django.core.paginator import Paginator
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render

from adapterhub.accounts.memberships import Tenure, tenures
from adapterhub.api.listing import MOST_LETTERS
from adapterhub.api.permissions import actor_of
from adapterhub.audit.access_log import observe
from adapterhub.audit.pages import PAGE, audited
from adapterhub.audit.tags import Tag


@login_required
def roles(request: HttpRequest) -> HttpResponse:
    """Show the periods in which users held roles, newest first; `q` searches users, roles and projects.

    Covers the projects whose trail the user may read, and records the reading. Raises NotAllowed if there are none.
    """
    words = request.GET.get("q", "")[:MOST_LETTERS].lower().split()
    matches = [each for each in reversed(tenures(audited(request))) if all(word in names_of(each) for word in words)]
    page = Paginator(matches, PAGE).get_page(request.GET.get("page"))
    observe(Tag.AUDIT_READ, by=actor_of(request), project=None, resource=request.get_full_path())
    return render(request, "audit/roles.html", {"page": page, "listing": {"words": " ".join(words)}})


def names_of(tenure: Tenure) -> str:
    """Return the text of a period in a role that a search looks through, in lower case."""
    return f"{tenure.user} {tenure.role} {tenure.project.slug} {tenure.project.name}".lower()
