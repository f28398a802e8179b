"""MLflow's search: its filter expressions, orders and page tokens, as far as adapters and versions have the fields."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from django.db.models import F, Lookup, Q, QuerySet
from django.db.models.sql.compiler import SQLCompiler
from rest_framework import serializers

from adapterhub.core.errors import Invalid
from adapterhub.core.references import parts_of

TEXT = r"'[^']*'|\"[^\"]*\""
CONDITION = re.compile(
    rf"\s*(?P<field>[\w.]+(?:`[^`]*`)?)\s*(?P<verb>!=|=|ILIKE\b|LIKE\b|IN\b)\s*(?P<value>{TEXT}|\d+|\([^()]*\))\s*",
    re.IGNORECASE,
)
AND = re.compile(r"AND\b", re.IGNORECASE)
ORDER = re.compile(r"\s*(\w+)(?:\s+(ASC|DESC))?\s*", re.IGNORECASE)
MOST_ROWS, MOST_ORDERS = 1000, 20


class SearchSerializer(serializers.Serializer[Any]):
    """The parameters of a search."""

    filter = serializers.CharField(required=False, allow_blank=True, default="", max_length=5000)
    max_results = serializers.IntegerField(required=False, default=100, min_value=1, max_value=200_000)
    order_by = serializers.ListField(
        child=serializers.CharField(max_length=100), required=False, default=list, max_length=MOST_ORDERS
    )
    page_token = serializers.RegexField(r"^\d{1,9}$", required=False, allow_blank=True, default="")


class Like(Lookup):
    """SQL's LIKE, which takes any number of wildcards: Postgres fails on a regular expression with as many."""

    verb = "LIKE"

    def as_sql(self, compiler: SQLCompiler, connection: Any) -> Any:
        """Return the comparison and its parameters."""
        left, of_left = self.process_lhs(compiler, connection)
        right, of_right = self.process_rhs(compiler, connection)
        return f"{left} {self.verb} {right}", [*of_left, *of_right]


class ILike(Like):
    """SQL's ILIKE: LIKE whatever the case of letters."""

    verb = "ILIKE"


@dataclass(frozen=True)
class Condition:
    """One comparison of a filter: the field, `=`, `!=`, `LIKE`, `ILIKE` or `IN`, and its texts."""

    field: str
    verb: str
    values: tuple[str, ...]


def conditions(text: str) -> list[Condition]:
    """Return the comparisons of a filter, joined by AND; [] for an empty text. Raises Invalid if it cannot be read."""
    comparisons, place = [], 0
    while text.strip():
        match = CONDITION.match(text, place)
        if match is None:
            raise unreadable(text[place:])
        raw = match["value"]
        values = re.findall(TEXT, raw) if raw.startswith("(") else [raw]
        comparisons.append(
            Condition(
                match["field"].replace("`", ""), match["verb"].upper(), tuple(value.strip("'\"") for value in values)
            )
        )
        place = match.end()
        if place == len(text):
            break
        joined = AND.match(text, place)
        if joined is None:
            raise unreadable(text[place:])
        place = joined.end()
    return comparisons


def unreadable(rest: str) -> Invalid:
    """Return the Invalid to raise for a filter that cannot be read at `rest`, its unread part.

    Neither a comparison nor, after one, AND begins there.
    """
    return Invalid(
        f"The filter cannot be read at {rest[:50]!r}: write comparisons such as name = 'dora', joined by AND.",
        field="filter",
        code="bad_filter",
    )


def unknown(condition: Condition, known: str) -> Invalid:
    """Return the Invalid to raise for a comparison that the search cannot make; `known` lists those that it can."""
    return Invalid(
        f"{condition.field} {condition.verb} cannot be searched for here; {known} can.",
        field="filter",
        code="bad_filter",
    )


def name_condition(condition: Condition, path: str) -> Q:
    """Return the database lookup for a comparison with a registered model's name, which may be `project.slug`.

    LIKE and ILIKE compare the slug alone. `path` leads from a row to its adapter; it is empty if the rows are adapters.
    """
    slug, project_path = f"{path}slug", f"{path}project__slug"
    if condition.verb in ("LIKE", "ILIKE"):
        # A backslash escapes nothing in MLflow.
        pattern = condition.values[0].replace("\\", r"\\")
        return Q((ILike if condition.verb == "ILIKE" else Like)(F(slug), pattern))
    matching = Q()
    for name in condition.values:
        project, own = parts_of(name)
        matching |= Q(**{slug: own}, **({project_path: project} if project else {}))
    return ~matching if condition.verb == "!=" else matching


def ordered(rows: QuerySet[Any], wanted: list[str], fields: dict[str, str], default: list[str]) -> QuerySet[Any]:
    """Return the rows in the order of `wanted`, texts such as `name DESC`, then in the order of `default`.

    `fields` maps MLflow's field names to those of the rows. Raises Invalid for a field that it lacks.
    """
    keys = []
    for text in wanted:
        match = ORDER.fullmatch(text)
        if match is None or match[1].lower() not in fields:
            raise Invalid(
                f"order_by is one of {', '.join(fields)}, with ASC or DESC, not {text[:50]!r}.", field="order_by"
            )
        keys.append(("-" if (match[2] or "").upper() == "DESC" else "") + fields[match[1].lower()])
    return rows.order_by(*keys, *default)


def page(rows: QuerySet[Any], search: dict[str, Any]) -> tuple[list[Any], dict[str, str]]:
    """Return one page of rows, at most MOST_ROWS, and the field with the token of the next page, if there is one."""
    start, size = int(search["page_token"] or 0), min(search["max_results"], MOST_ROWS)
    matches = list(rows[start : start + size + 1])
    return matches[:size], {"next_page_token": str(start + size)} if len(matches) > size else {}
