"""Who may do what in which project: scopes, roles, and what a caller answers about itself.

No models: a person and a token are callers by their methods, and the model of projects is asked for by its name, as
Django asks for the model of users.
"""

from __future__ import annotations

from typing import Any, Protocol

from django.apps import apps
from django.db.models import QuerySet, TextChoices


class Scope(TextChoices):
    """What a token may do."""

    READ = "read"
    TRAIN = "train"
    PUBLISH = "publish"
    OPERATE = "operate"
    INFER = "infer"
    AUDIT = "audit"
    ADMIN = "admin"


# Of people alone: no token can hold it.
APPROVE = "approve"


class Role(TextChoices):
    """A person's part in a project."""

    VIEWER = "viewer"
    TRAINER = "trainer"
    APPROVER = "approver"
    OPERATOR = "operator"
    AUDITOR = "auditor"
    ADMIN = "admin"


ROLE_SCOPES: dict[str, set[str]] = {
    Role.VIEWER: {Scope.READ},
    Role.TRAINER: {Scope.READ, Scope.TRAIN, Scope.PUBLISH, Scope.INFER},
    Role.APPROVER: {Scope.READ, Scope.INFER, APPROVE},
    Role.OPERATOR: {Scope.READ, Scope.OPERATE, Scope.INFER},
    Role.AUDITOR: {Scope.READ, Scope.AUDIT},
    Role.ADMIN: {*Scope.values, APPROVE},
}


class Tenant(Protocol):
    """A project, as far as those below its model know it."""

    pk: Any
    slug: Any


class Caller(Protocol):
    """Who sends a request: a person or a token."""

    pk: Any

    def scopes_in(self, project: Any) -> set[str]:
        """Return what the caller may do in the project."""

    def projects(self) -> QuerySet[Any]:
        """Return the projects whose things the caller may see."""

    def projects_with(self, scope: str) -> QuerySet[Any]:
        """Return the projects in which the caller has the scope."""

    def visible_rows(self, queryset: QuerySet[Any], path: str, scope: str) -> QuerySet[Any]:
        """Return the rows whose project, found by `path`, the caller sees; with a scope, has it in."""


def roles_with(scope: str) -> list[str]:
    """Return the roles that grant the scope."""
    return [role for role, scopes in ROLE_SCOPES.items() if scope in scopes]


def project_model() -> Any:
    """Return the model of projects."""
    return apps.get_model("accounts", "Project")
