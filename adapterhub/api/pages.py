"""What every page shares: navigation, tenancy, and domain errors as messages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from django.contrib import messages
from django.db.models import Model, QuerySet
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render

from adapterhub.api.errors import DomainError
from adapterhub.api.permissions import projects_of
from adapterhub.api.problems import TITLES

NAVIGATION = [
    ("overview", "Overview"),
    ("adapters", "Adapters"),
    ("rollouts", "Rollouts"),
    ("training-runs", "Training"),
    ("rank-analyses", "Rank analyses"),
    ("datasets", "Datasets"),
    ("clusters", "Clusters"),
    ("audit", "Audit"),
]


def navigation(request: HttpRequest) -> dict[str, Any]:
    """Context processor."""
    return {"navigation": NAVIGATION}


def mine(request: HttpRequest, queryset: QuerySet[Any], path: str = "project") -> QuerySet[Any]:
    """The part of the queryset that belongs to projects that the user sees."""
    return queryset.filter(**{f"{path}__in": projects_of(request)})


def one(request: HttpRequest, queryset: QuerySet[Any], path: str = "project", **identity: Any) -> Model:
    """One thing of the user's projects; what lies in other projects is 404."""
    return get_object_or_404(mine(request, queryset, path), **identity)


class DomainErrorsOnPages:
    """Middleware: a refused verb leads back to its page with the reason; nothing that was typed elsewhere is lost."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        return self.get_response(request)

    def process_exception(self, request: HttpRequest, error: Exception) -> HttpResponse | None:
        if not isinstance(error, DomainError) or request.path.startswith("/api/"):
            return None
        back = urlsplit(request.headers.get("Referer", ""))
        if request.method == "POST" and back.netloc == request.get_host():
            messages.error(request, error.detail)
            return redirect(back.path)
        context = {"title": TITLES.get(error.status, "Refused"), "detail": error.detail}
        return render(request, "error.html", context, status=error.status)
