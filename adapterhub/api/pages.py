"""Shared functions of the pages: navigation, tenancy, and domain errors shown as messages."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast
from urllib.parse import urlsplit

from django import forms
from django.contrib import messages
from django.db.models import BLANK_CHOICE_DASH, Model, QuerySet
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse

from adapterhub.api.parsers import require_storable
from adapterhub.api.permissions import projects_of, projects_with
from adapterhub.api.problems import error_page
from adapterhub.core.errors import Conflict, DomainError, Invalid, NoProject, NotAllowed
from adapterhub.core.references import named

Row = TypeVar("Row", bound=Model)
Page = Callable[..., HttpResponse]
LONGEST_REASON = 2000
# The first entry of a select in which nothing is chosen yet.
CHOOSE = "choose one"
NAVIGATION = [
    (
        "Serve",
        [
            ("overview", "Overview"),
            ("playground", "Playground"),
            ("adapters", "Adapters"),
            ("rollouts", "Rollouts"),
            ("approvals", "Approvals"),
            ("clusters", "Clusters"),
            ("base-models", "Base models"),
        ],
    ),
    (
        "Train",
        [
            ("training-runs", "Training"),
            ("rank-analyses", "Rank analyses"),
            ("evaluations", "Evaluations"),
            ("datasets", "Datasets"),
        ],
    ),
    (
        "Govern",
        [
            ("audit", "Audit"),
            ("usage", "Usage"),
            ("tokens", "Tokens"),
            ("webhooks", "Webhooks"),
            ("invitations", "Invitations"),
            ("settings", "Settings"),
        ],
    ),
]


def accepts_files(view: Page) -> Page:
    """Mark a page to which files may be uploaded, so that its requests may be larger than others; return it."""
    view.__dict__["takes_files"] = True
    return view


def entry(address: str, label: str, path: str) -> dict[str, str]:
    """Return a link of the navigation as {address, label, current}, shown on the page at `path`.

    `current` is "page" on the page at `address`, "true" on one below it, else ""; the overview has no pages below it.
    """
    is_below = address != reverse("overview") and path.startswith(address)
    return {"address": address, "label": label, "current": "page" if path == address else "true" if is_below else ""}


def navigation(request: HttpRequest) -> dict[str, Any]:
    """Return {navigation: [(section, links), ...]}, as a context processor.

    A link has address, label and `current`: "page" on its own page, "true" on one below it, else "".
    """
    sections = [
        (section, [entry(reverse(name), label, request.path) for name, label in links]) for section, links in NAVIGATION
    ]
    return {"navigation": sections}


def visible_rows(request: HttpRequest, queryset: QuerySet[Row], path: str = "project") -> QuerySet[Row]:
    """Return the rows of projects that the user sees; `path` is the lookup from a row to its project."""
    return queryset.filter(**{f"{path}__in": projects_of(request)})


def visible_or_404(request: HttpRequest, queryset: QuerySet[Row], path: str = "project", **identity: Any) -> Row:
    """Return the one object that `identity` names among those that the user sees.

    `path` is the lookup from an object to its project. The first of `identity` may be a reference, as `eu.dora`. Raises
    Http404 if the user sees none, and Conflict if several projects have its name.
    """
    (field, reference), *others = identity.items()
    rows = visible_rows(request, queryset, path).filter(**dict(others))
    if not isinstance(reference, str):
        return get_object_or_404(rows, **{field: reference})
    thing = named(rows, path, field, reference)
    if thing is None:
        raise Http404(f"There is no {reference!r}.")
    return thing


def allowed(request: HttpRequest, scope: str) -> QuerySet[Any]:
    """Return the projects in which the signed-in user has the scope, also archived ones; for a superuser all."""
    return projects_of(request) if request.user.is_superuser else projects_with(request, scope)


def allowed_somewhere(request: HttpRequest, scope: str) -> QuerySet[Any]:
    """Return the projects of `allowed` that are not archived, for a form's choices.

    Raises NotAllowed if there is none; NoProject to an administrator of the installation, who may create one.
    """
    projects = allowed(request, scope).filter(archived_at=None)
    if not projects.exists():
        if request.user.is_superuser:
            raise NoProject("Everything here belongs to a project, and there is none yet: create the first one.")
        raise NotAllowed(f"This needs scope '{scope}' in a project: ask one of its admins.", code="scope_missing")
    return projects


def offer(form: forms.BaseForm, **rows: QuerySet[Any]) -> None:
    """Set the rows that the form's fields of these names offer; an empty choice reads "choose one".

    `rows` maps the name of a field to its rows.
    """
    for name, queryset in rows.items():
        field = cast("forms.ModelChoiceField[Any]", form.fields[name])
        if field.empty_label == BLANK_CHOICE_DASH[0][1]:
            field.empty_label = CHOOSE
        field.queryset = queryset


def preselect(form: forms.BaseForm, *names: str) -> None:
    """Select the row of each of these fields that offers a single one, unless the form has an initial value for it."""
    for name in names:
        field = cast("forms.ModelChoiceField[Any]", form.fields[name])
        # All rows, which the page lists anyway: a part of them would be a query of its own.
        rows = list(field.queryset) if field.queryset is not None else []
        if len(rows) == 1 and not form.initial.get(name):
            form.initial[name] = getattr(rows[0], field.to_field_name or "pk")


@contextmanager
def errors_on(form: forms.BaseForm) -> Iterator[None]:
    """Context manager that turns Invalid and Conflict into an error of the form, at its field if it has that one."""
    try:
        yield
    except (Invalid, Conflict) as error:
        form.add_error(error.field if error.field in form.fields else None, error.detail)


def form_page(request: HttpRequest, form: forms.BaseForm, **texts: str) -> HttpResponse:
    """Render a page with this form alone, as 422 if the form has errors.

    `texts` are the page's `title`, its `lead` (the text below that) and `action` (the label of its button), and where
    they apply `place` and `back` (the name and URL of the page above) and `words`, those of the glossary that it
    explains.
    """
    return render(request, "form.html", {"form": form, **texts}, status=422 if form.errors else 200)


def reason_in(request: HttpRequest) -> str:
    """Return the reason in the submitted form. Raises Invalid when it is empty, too long or cannot be stored."""
    reason = request.POST.get("reason", "").strip()
    if not reason:
        raise Invalid("Give a reason: it is recorded in the audit trail.", field="reason")
    if len(reason) > LONGEST_REASON:
        raise Invalid(f"A reason may have at most {LONGEST_REASON:,} characters: shorten it.", field="reason")
    require_storable("reason", reason)
    return reason


def followed(request: HttpRequest, page: str, part: str, context: dict[str, Any], state: object) -> HttpResponse:
    """Return the rendered `page`, or for a poll (HTMX) only `part` of it, the template of what changes.

    `state` is the object's state. A poll whose parameter `seen` names another one makes the browser reload the page,
    because other operations are possible then.
    """
    if not request.headers.get("HX-Request"):
        return render(request, page, context)
    return with_reload(request, render(request, part, context), state)


def reloaded_after(request: HttpRequest, state: object) -> HttpResponse:
    """Return an empty response to a poll, which makes the browser reload the page once `seen` is another state."""
    return with_reload(request, HttpResponse(), state)


def with_reload(request: HttpRequest, response: HttpResponse, state: object) -> HttpResponse:
    """Make the response to a poll reload the page if its parameter `seen` names another state than `state`."""
    if request.GET.get("seen", str(state)) != str(state):
        response["HX-Refresh"] = "true"
    return response


class DomainErrorsOnPages:
    """Middleware that redirects a refused POST to the page that sent it, with the error as a message.

    Other refused requests get an error page with the status of the error. REST requests are left alone.
    """

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        """Pass the request on."""
        return self.get_response(request)

    def process_exception(self, request: HttpRequest, error: Exception) -> HttpResponse | None:
        """Return a redirect to the page that sent the form, with a domain error as a message, or else an error page.

        Returns None for other errors and for the API.
        """
        if not isinstance(error, DomainError) or request.path.startswith("/api/"):
            return None
        back = urlsplit(request.headers.get("Referer", ""))
        if request.method == "POST" and back.netloc == request.get_host():
            messages.error(request, error.detail)
            query = f"?{back.query}" if back.query else ""
            return redirect("/" + back.path.lstrip("/") + query)
        return error_page(request, error)
