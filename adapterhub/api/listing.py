"""Lists on pages whose search, choices, order and page are in the URL, so that a list can be shared and reloaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from django.core.paginator import Paginator
from django.db.models import F, Q, QuerySet
from django.http import HttpRequest

MOST_LETTERS = 100
PAGE_ROWS = 50


class Listing:
    """The rows of a page's list, searched, filtered and sorted by the query string.

    Values that are not offered are ignored.

    `search` are the fields that `q` is searched in (`__icontains` unless they name a lookup), `sorts` maps the values
    of `sort` (with `-` before them: descending) to fields, `choices` maps fields to their (value, label) pairs, and
    `states` maps names to conditions that are no field's value, offered as one more choice.
    """

    def __init__(
        self,
        request: HttpRequest,
        queryset: QuerySet[Any],
        *,
        search: Sequence[str],
        sorts: Mapping[str, str] | None = None,
        choices: Mapping[str, Sequence[tuple[str, str]]] | None = None,
        states: Mapping[str, Q] | None = None,
    ) -> None:
        self.request, self.search, self.sorts, self.states = request, search, sorts or {}, states or {}
        self.choices = {**(choices or {}), **({"state": [(word, word) for word in self.states]} if states else {})}
        self.words = request.GET.get("q", "").replace("\x00", "").strip()[:MOST_LETTERS]
        self.chosen = {name: request.GET.get(name, "") for name in self.choices}
        self.sort = request.GET.get("sort", "")
        self.queryset = self.sorted(self.filtered(queryset))

    def filtered(self, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """Return the rows that have each word of the search in some field, and match every chosen value."""
        for word in self.words.split():
            lookups = [name if "__icontains" in name else f"{name}__icontains" for name in self.search]
            queryset = queryset.filter(Q.create([(lookup, word) for lookup in lookups], connector=Q.OR))
        for name, value in self.chosen.items():
            if value in dict(self.choices[name]):
                wanted = self.states[value] if name == "state" and self.states else Q((name, value))
                queryset = queryset.filter(wanted)
        return queryset

    def sorted(self, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """Return the queryset in the chosen order, rows without a value last, ties by key.

        Unchanged without a known order.
        """
        field = self.sorts.get(self.sort.removeprefix("-"))
        if field is None:
            return queryset
        first = F(field).desc(nulls_last=True) if self.sort.startswith("-") else F(field).asc(nulls_last=True)
        return queryset.order_by(first, "pk")

    def context(self, size: int = PAGE_ROWS) -> dict[str, Any]:
        """Return the template context: `page`, of `size` rows, and `listing`, which is this object."""
        page = Paginator(self.queryset, size).get_page(self.request.GET.get("page"))
        return {"page": page, "listing": self}

    @property
    def is_narrowed(self) -> bool:
        """Return True if the query string has a search or a value for a filter, even one that is not offered."""
        return bool(self.words or any(self.chosen.values()))

    @property
    def offered(self) -> list[dict[str, Any]]:
        """Return the filters as {name, value, pairs}, for rendering as select elements.

        `value` is the chosen one, "" if none is, and `pairs` are the (value, label) pairs to choose from.
        """
        return [{"name": name, "value": self.chosen[name], "pairs": pairs} for name, pairs in self.choices.items()]
