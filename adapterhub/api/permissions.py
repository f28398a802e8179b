"""Who may call what: one policy for REST and pages. A route without a rule is closed."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from django.db.models import QuerySet
from django.http import HttpRequest
from rest_framework.permissions import BasePermission
from rest_framework.request import Request

from adapterhub.core.actor import Actor
from adapterhub.core.errors import Invalid, NotAllowed
from adapterhub.core.tenancy import Caller, Scope, Tenant

FRESH_S = 600

if TYPE_CHECKING:
    from rest_framework.views import APIView


def caller_of(request: HttpRequest | Request) -> Caller:
    """Return the token that the request shows, else the person who is signed in."""
    caller: Caller = getattr(request, "auth", None) or request.user
    return caller


def scopes_in(request: HttpRequest | Request, project: Tenant) -> set[str]:
    """What the caller may do in the project: a token's scopes, or what the user's roles grant."""
    return caller_of(request).scopes_in(project)


def projects_of(request: HttpRequest | Request) -> QuerySet[Any]:
    """The projects whose things the caller may see."""
    return caller_of(request).projects()


def projects_with(request: HttpRequest | Request, scope: str) -> QuerySet[Any]:
    """The projects in which the caller has the scope."""
    return caller_of(request).projects_with(scope)


def seen_in(queryset: QuerySet[Any], path: str, request: HttpRequest | Request, scope: str = "") -> QuerySet[Any]:
    """The part whose project, found by `path`, the caller sees; with a scope, has it in."""
    return caller_of(request).visible_rows(queryset, path, scope)


def require_scope(request: HttpRequest | Request, project: Tenant, scope: str) -> None:
    """Raises NotAllowed unless the caller has the scope in the project."""
    if scope not in scopes_in(request, project):
        raise NotAllowed(f"This needs scope '{scope}' in project {project.slug!r}.", code="scope_missing")


def named_project(request: HttpRequest | Request, slug: str, scope: str) -> Any:
    """The project with this slug, if the caller sees it and has the scope there."""
    # Of a query it comes as it was typed; a NUL would reach the database.
    project = projects_of(request).filter(slug=slug.replace("\0", ""), archived_at=None).first()
    if project is None:
        raise Invalid(f"There is no project {slug!r} that you can see.", field="project", code="unknown_project")
    require_scope(request, project, scope)
    return project


def actor_of(request: HttpRequest | Request) -> Actor:
    """The caller as the audit trail names it."""
    token = getattr(request, "auth", None)
    actor: Actor = token.as_actor() if token else request.user.as_actor(request.session.get("auth_method", "session"))
    return replace(actor, request_id=request.request_id)


def require_fresh_sign_in(request: HttpRequest | Request, password: str = "") -> None:
    """A signature needs its person: a sign-in of the last ten minutes, or the password once more. Raises NotAllowed."""
    if getattr(request, "auth", None):
        raise NotAllowed("Tokens cannot approve: sign in as a person.", code="token_cannot_approve")
    since = time.time() - request.session.get("signed_in_at", 0)
    if since <= FRESH_S or (password and request.user.check_password(password)):
        return
    raise NotAllowed(
        "A signature needs your password, or a sign-in of the last ten minutes.",
        field="password",
        code="reauthentication_required",
    )


class ScopePermission(BasePermission):
    """A view names the scope of each action in `scopes`; an action that it does not name is refused."""

    def has_permission(self, request: Request, view: APIView) -> bool:
        if not (request.auth or request.user.is_authenticated):
            return False
        return self.scope(request, view) is not None

    def has_object_permission(self, request: Request, view: APIView, obj: object) -> bool:
        project = view.project_of(obj)
        if project is not None:
            require_scope(request, project, self.scope(request, view))
        return True

    def scope(self, request: Request, view: APIView) -> str | None:
        scopes = getattr(view, "scopes", {})
        action = getattr(view, "action", None) or request.method.lower()
        if action in ("list", "retrieve", "metadata"):
            return scopes.get(action, Scope.READ)
        return scopes.get(action)
