"""Who may call what: one policy for REST and pages. A route without a rule is closed."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from django.db.models import QuerySet
from django.http import HttpRequest
from rest_framework.permissions import BasePermission
from rest_framework.request import Request

from adapterhub.accounts.models import ROLE_SCOPES, ApiToken, Membership, Project, Scope
from adapterhub.core.actor import Actor
from adapterhub.core.errors import Invalid, NotAllowed

FRESH_S = 600

if TYPE_CHECKING:
    from rest_framework.views import APIView


def scopes_in(request: HttpRequest | Request, project: Project) -> set[str]:
    """What the caller may do in the project: a token's scopes, or what the user's roles grant."""
    token = getattr(request, "auth", None)
    if isinstance(token, ApiToken):
        return token.scopes_now() if token.project_id == project.pk else set()
    held = set(Scope.values) if request.user.is_superuser else set()
    roles = project.memberships.filter(user_id=request.user.pk).values_list("role", flat=True)
    return held.union(*(ROLE_SCOPES[role] for role in roles))


def projects_of(request: HttpRequest | Request) -> QuerySet[Project]:
    """The projects whose things the caller may see."""
    token = getattr(request, "auth", None)
    if isinstance(token, ApiToken):
        return Project.objects.filter(pk=token.project_id)
    return Project.objects.visible_to(request.user)


def projects_with(request: HttpRequest | Request, scope: str) -> QuerySet[Project]:
    """The projects in which the caller has the scope."""
    token = getattr(request, "auth", None)
    if isinstance(token, ApiToken) or request.user.is_superuser:
        granted = token.scopes_now() if isinstance(token, ApiToken) else set(Scope.values)
        return projects_of(request) if scope in granted else Project.objects.none()
    roles = [role for role, scopes in ROLE_SCOPES.items() if scope in scopes]
    held = Membership.objects.filter(user_id=request.user.pk, role__in=roles)
    return Project.objects.filter(pk__in=held.values("project"))


def seen_in(queryset: QuerySet[Any], path: str, request: HttpRequest | Request, scope: str = "") -> QuerySet[Any]:
    """The part whose project, found by `path`, the caller sees; with a scope, has it in."""
    token = getattr(request, "auth", None)
    if isinstance(token, ApiToken):
        found = queryset.filter(**{path: token.project_id})
        return found if not scope or scope in token.scopes_now() else found.none()
    return queryset.filter(**{f"{path}__in": projects_with(request, scope) if scope else projects_of(request)})


def require_scope(request: HttpRequest | Request, project: Project, scope: str) -> None:
    """Raises NotAllowed unless the caller has the scope in the project."""
    if scope not in scopes_in(request, project):
        raise NotAllowed(f"This needs scope '{scope}' in project {project.slug!r}.", code="scope_missing")


def named_project(request: HttpRequest | Request, slug: str, scope: str) -> Project:
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
    if isinstance(token, ApiToken):
        actor = token.as_actor()
    else:
        actor = request.user.as_actor(request.session.get("auth_method", "session"))
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
