"""Scopes, roles and the caller protocol, which decide what is allowed in which project.

No models: people and tokens are callers by their methods, and the project model is looked up by its name, as Django
looks up the user model.
"""

from __future__ import annotations

from typing import Any, Protocol

from django.apps import apps
from django.db.models import QuerySet, TextChoices


class Scope(TextChoices):
    """The permissions that tokens can have and that roles grant; APPROVE is one more, of people alone."""

    READ = "read"
    TRAIN = "train"
    PUBLISH = "publish"
    OPERATE = "operate"
    INFER = "infer"
    AUDIT = "audit"
    ADMIN = "admin"


# A scope that only people can have, never a token.
APPROVE = "approve"


class Role(TextChoices):
    """The roles of a person in a project."""

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


# What forms say beside the choice of a role.
ROLE_HELP = (
    "A viewer reads. A trainer trains and publishes, too, an operator moves traffic, an approver signs, an auditor "
    "reads the audit trail, an admin does all of this and manages members and tokens."
)


class Tenant(Protocol):
    """The attributes of a project that layers below its model may use."""

    pk: Any
    slug: Any


def row_of(project: Tenant | None) -> Any:
    """Return the project unchanged, typed as Any.

    Code in a layer below the model cannot import its class, but may assign the project to a foreign key.
    """
    return project


class Caller(Protocol):
    """The sender of a request: a person or a token."""

    pk: Any

    def scopes_in(self, project: Any) -> set[str]:
        """Return the scopes that the caller has in the project."""

    def projects(self) -> QuerySet[Any]:
        """Return the projects whose objects the caller may see."""

    def projects_with(self, scope: str) -> QuerySet[Any]:
        """Return the projects in which the caller has the scope."""

    def visible_rows(self, queryset: QuerySet[Any], path: str, scope: str) -> QuerySet[Any]:
        """Return the rows whose project the caller sees or, if `scope` is not empty, in which they have that scope.

        `path` is the lookup from a row to its project.
        """


def roles_with(scope: str) -> list[str]:
    """Return the roles that grant the scope."""
    return [role for role, scopes in ROLE_SCOPES.items() if scope in scopes]


def project_model() -> Any:
    """Return the model class of projects, for layers below it, which cannot import it."""
    return apps.get_model("accounts", "Project")
