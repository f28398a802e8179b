"""References to things whose names are unique in their project: `dora`, or `eu.dora` where two projects have one."""

from __future__ import annotations

from typing import Any, TypeVar

from django.db.models import Model, QuerySet

from adapterhub.core.errors import Conflict

Row = TypeVar("Row", bound=Model)
REFERENCE = r"[-\w]+(?:\.[-\w]+)?"
# In a body `eu/dora` is understood, too; in a path the slash would begin another resource.
REFERENCE_IN_BODY = r"^[-\w]+(?:[./][-\w]+)?$"


class ReferenceConverter:
    """The converter of a reference in a page's path: `name` or `project.name`."""

    regex = REFERENCE

    def to_python(self, value: str) -> str:
        """Return the reference unchanged."""
        return value

    def to_url(self, value: str) -> str:
        """Return the reference unchanged."""
        return value


def parts_of(reference: str) -> tuple[str, str]:
    """Split a reference, `name`, `project.name` or `project/name`, into project (empty without one) and name."""
    project, _, name = reference.replace("/", ".").rpartition(".")
    return project, name


def named(rows: QuerySet[Row], project_path: str, field: str, reference: str) -> Row | None:
    """Return the row that the reference names; None if there is none. `rows` are those that the caller sees.

    `project_path` is the lookup from a row to its project, `field` that of its name. Raises Conflict, saying how to
    name each, if rows of several projects have the name.
    """
    project, name = parts_of(reference)
    lookup: dict[str, Any] = {field: name, **({f"{project_path}__slug": project} if project else {})}
    matches = list(rows.filter(**lookup).select_related(project_path)[:3])
    if len(matches) > 1:
        raise ambiguous(name, sorted(slug_at(row, project_path) for row in matches))
    return matches[0] if matches else None


def ambiguous(name: str, projects: list[str]) -> Conflict:
    """Return the Conflict that says how to name the object of each project."""
    choices = " or ".join(f"{project}.{name}" for project in projects)
    return Conflict(f"Several of your projects have {name!r}: write {choices}.", code="ambiguous_name")


def slug_at(row: Any, path: str) -> str:
    """Return the slug of the row's project, which `path` leads to: field names joined by `__`."""
    for part in path.split("__"):
        row = getattr(row, part)
    return str(row.slug)
