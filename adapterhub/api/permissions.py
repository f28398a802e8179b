"""The access policy of REST and pages. A route without a rule is closed."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol, cast

from django.db.models import QuerySet
from django.http import HttpRequest
from rest_framework.permissions import BasePermission
from rest_framework.request import Request

from adapterhub.api.request_state import marked
from adapterhub.core.actor import Actor
from adapterhub.core.errors import Invalid, NotAllowed
from adapterhub.core.tenancy import Caller, Scope, Tenant

if TYPE_CHECKING:
    from rest_framework.views import APIView


def caller_of(request: HttpRequest | Request) -> Caller:
    """Return the token of the request, else the signed-in user."""
    return cast(Caller, getattr(request, "auth", None) or request.user)


def scopes_in(request: HttpRequest | Request, project: Tenant) -> set[str]:
    """Return the caller's scopes in the project: those of the token, or those that the user's roles grant."""
    return caller_of(request).scopes_in(project)


def projects_of(request: HttpRequest | Request) -> QuerySet[Any]:
    """Return the projects whose objects the caller may see."""
    return caller_of(request).projects()


def projects_with(request: HttpRequest | Request, scope: str) -> QuerySet[Any]:
    """Return the projects in which the caller has the scope."""
    return caller_of(request).projects_with(scope)


def seen_in(queryset: QuerySet[Any], path: str, request: HttpRequest | Request, scope: str = "") -> QuerySet[Any]:
    """Return the rows whose project the caller sees or, if `scope` is not empty, in which the caller has that scope.

    `path` is the lookup from a row to its project.
    """
    return caller_of(request).visible_rows(queryset, path, scope)


def require_scope(request: HttpRequest | Request, project: Tenant, scope: str) -> None:
    """Raise NotAllowed unless the caller has the scope in the project; else add both to the request's `used_scopes`."""
    if scope not in scopes_in(request, project):
        raise NotAllowed(f"This needs scope '{scope}' in project {project.slug!r}.", code="scope_missing")
    django_request = marked(getattr(request, "_request", request))
    django_request.used_scopes = getattr(django_request, "used_scopes", set()) | {(project.pk, scope)}


def used_scopes(request: Request) -> list[list[Any]]:
    """Return the sorted [project key, scope] pairs that the request was checked for.

    If there were none: each project that the caller sees, with an empty scope.
    """
    used: set[tuple[int, str]] = getattr(request._request, "used_scopes", set())
    seen = used or {(pk, "") for pk in projects_of(request).values_list("pk", flat=True)}
    return sorted([pk, str(scope)] for pk, scope in seen)


def require_used_scopes(request: Request, used: list[list[Any]]) -> None:
    """Raise NotAllowed unless the caller still has the scopes of `used`, pairs from `used_scopes`."""
    for scope in {scope for _, scope in used}:
        wanted = {pk for pk, used_scope in used if used_scope == scope}
        projects = projects_with(request, scope) if scope else projects_of(request)
        if wanted - set(projects.filter(pk__in=wanted).values_list("pk", flat=True)):
            raise NotAllowed(
                "This Idempotency-Key's answer is for a role that you no longer have.", code="scope_missing"
            )


def require_admin_somewhere(request: HttpRequest | Request) -> None:
    """Raise NotAllowed unless the caller has scope `admin` somewhere or, signed in, administers the installation.

    It guards what belongs to no project.
    """
    project = projects_with(request, Scope.ADMIN).first()
    if project is not None:
        require_scope(request, project, Scope.ADMIN)
    elif getattr(request, "auth", None) or not request.user.is_superuser:
        raise NotAllowed("This needs scope 'admin' in a project: ask one of its admins.", code="scope_missing")


def named_project(request: HttpRequest | Request, slug: str, scope: str) -> Any:
    """Return the project with this slug.

    Raises Invalid if the caller does not see it or it is archived, NotAllowed if the caller lacks the scope there.
    """
    # A slug of the query string is not validated; a NUL would reach the database.
    project = projects_of(request).filter(slug=slug.replace("\0", ""), archived_at=None).first()
    if project is None:
        raise Invalid(f"There is no project {slug!r}, or you cannot see it.", field="project", code="unknown_project")
    require_scope(request, project, scope)
    return project


def actor_of(request: HttpRequest | Request) -> Actor:
    """Return the caller as an actor of the audit trail, with the request's id."""
    token, user = getattr(request, "auth", None), cast(Any, request.user)
    actor: Actor = token.as_actor() if token else user.as_actor(request.session.get("auth_method", "session"))
    return replace(actor, request_id=marked(request).request_id)


class HasProject(Protocol):
    """A view whose objects belong to projects."""

    def project_of(self, thing: Any) -> Tenant | None:
        """Return the project whose scopes decide who may act on the object; None for an object of the installation."""


class ScopePermission(BasePermission):
    """A permission that requires the scope which a view's `scopes` names for the action.

    An action that is not named is refused; list, retrieve and metadata default to scope `read`.
    """

    def has_permission(self, request: Request, view: APIView) -> bool:
        """Return True for a token or signed-in user at an action that has a scope.

        The scope itself is checked for each object.
        """
        if not (request.auth or request.user.is_authenticated):
            return False
        return self.scope(request, view) is not None

    def has_object_permission(self, request: Request, view: APIView, obj: object) -> bool:
        """Return True if the caller has the scope in the object's project, or it has no project.

        Raises NotAllowed otherwise.
        """
        project = cast(HasProject, view).project_of(obj)
        if project is not None:
            # has_permission refused the actions that have no scope.
            require_scope(request, project, str(self.scope(request, view)))
        return True

    def scope(self, request: Request, view: APIView) -> str | None:
        """Return the scope that the action needs; None for an action that the view does not name, and so is refused."""
        scopes: dict[str, str] = getattr(view, "scopes", {})
        action = getattr(view, "action", None) or str(request.method).lower()
        if action in ("list", "retrieve", "metadata"):
            return scopes.get(action, Scope.READ)
        return scopes.get(action)
