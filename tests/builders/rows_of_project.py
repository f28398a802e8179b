"""A digest of everything that belongs to a project, to see whether anything of it changed."""

from __future__ import annotations

from functools import cache
from typing import Any

from django.apps import apps
from django.db import connection
from django.db.models import ForeignKey, Model, Q

from adapterhub.accounts.models import Project, User


@cache
def paths(model: type[Model]) -> tuple[str, ...]:
    """Return the lookups by which a row of the model leads to a project, the shortest by each of its keys."""
    ways = []
    for field in keys_of(model):
        if field.related_model is Project:
            ways.append(field.name)
        elif field.related_model is not model and (further := paths(field.related_model)):
            ways.append(f"{field.name}__{min(further, key=len)}")
    return tuple(ways)


def keys_of(model: type[Model]) -> list[Any]:
    return [field for field in model._meta.get_fields() if isinstance(field, ForeignKey)]


def condition(model: type[Model], project: Project) -> Q | None:
    """Return the condition of the project's rows; None for a table of the installation."""
    if model is Project:
        return Q(pk=project.pk)
    people = list(project.memberships.values_list("user", flat=True))
    if model is User:
        return Q(pk__in=people)
    if not paths(model) and any(field.name == "user" for field in keys_of(model)):
        return Q(user__in=people)
    return Q(*((way, project.pk) for way in paths(model)), _connector=Q.OR) if paths(model) else None


def project_rows(project: Project) -> dict[str, str]:
    """Return a digest of the project's rows for each table."""
    with connection.cursor() as cursor:
        cursor.execute(*statement(project))
        return dict(cursor.fetchall())


@cache
def statement(project: Project) -> tuple[str, list[Any]]:
    """Return the one statement that reads all tables, with its parameters."""
    queries, parameters = [], []
    for model in apps.get_models():
        rows = condition(model, project)
        if rows is not None:
            sql, own_parameters = model._base_manager.filter(rows).order_by().query.sql_with_params()
            lines = "md5(coalesce(string_agg(each::text, E'\\n' ORDER BY each::text), ''))"
            queries.append(f"SELECT '{model._meta.label}', {lines} FROM ({sql}) each")  # noqa: S608 (Django's own SQL)
            parameters += own_parameters
    return " UNION ALL ".join(queries), parameters
