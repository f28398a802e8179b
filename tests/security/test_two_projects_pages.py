"""The pages towards another project: every route of the resolver, and every name that its query and its form read."""

from __future__ import annotations

import re
from collections.abc import Callable
from difflib import unified_diff
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import transaction
from django.test import Client
from django.urls import reverse

from registry.models import BaseModel
from tests.api.rights import signed_in
from tests.builders.rows_of_project import project_rows
from tests.builders.tenants import Tenant, nowhere, tenant
from tests.builders.walk import PROGRAMS, PUBLIC, ROUTES
from tests.security import page_matrix
from tests.security.page_matrix import FORM_NAMES, FORMS, NAMES, OF_PAGE, QUERIES, QUERY_NAMES, VERBS, WRITTEN

OURS, THEIRS = "lemur", "zebra"
# REST has its own test of the same; MLflow's calls have theirs beside its client.
PAGES = [name for name in ROUTES if not name.startswith(PROGRAMS) and name not in PUBLIC]
# Different with every answer: the tokens of forms, times, ages, and durations up to now.
FRESH = re.compile(
    r">[^<>]*</time>|\d{4}-\d\d-\d\dT[\d:.+]+|\b\d\d:\d\d(?::\d\d)?\b|\b[A-Za-z0-9]{64}\b|\b\d+ (?:s|min)\b"
)
Names = dict[str, Any]
Request = tuple[str, str, Names, Names]


class Walk:
    """A person with every role in one project, who names the things of another on every page."""

    def __init__(self, client: Client, ours: Tenant, theirs: Tenant) -> None:
        self.client, self.ours, self.theirs = client, ours, theirs
        self.none = nowhere(theirs.names, THEIRS)
        self.before = project_rows(theirs.project)
        self.faults: list[str] = []

    def send(self, method: str, url: str, query: Names, form: Names) -> tuple[int, str]:
        """Send it, look at the other project's rows, and undo what it did."""
        with transaction.atomic():
            if method == "GET":
                answer = self.client.get(url, query)
            else:
                files = (
                    {"file": SimpleUploadedFile("rows.jsonl", b'{"text": "of nobody"}\n' * 30)}
                    if "file" in form
                    else {}
                )
                answer = self.client.post(url, form | files, query_params=query)
            after = project_rows(self.theirs.project)
            transaction.set_rollback(True)
        # What the call said of its success would stand on the next page.
        self.client.cookies.pop("messages", None)
        for table in (table for table, digest in after.items() if digest != self.before[table]):
            self.faults.append(f"{method} {url} {query} {form}: changes {table} of the other project")
        content = b"".join(answer.streaming_content) if answer.streaming else answer.content
        return answer.status_code, FRESH.sub("", content.decode(errors="replace")) + answer.get("Location", "")

    def try_page(self, name: str, method: str) -> None:
        """Put the other project's things and ones that exist nowhere into address, query and form, one at a time."""
        own = self.own_address(name)
        query, form = self.resolved(QUERIES.get(name, {})), {}
        if method == "POST":
            form = self.resolved(FORMS.get(name, {"reason": "x"}))
        QUERY_NAMES.clear()
        FORM_NAMES.clear()
        if self.send(method, reverse(name, kwargs=own), query, form)[0] == 405:
            return
        # A form is sent with its page's query, which it seldom reads.
        in_query = sorted(QUERY_NAMES if method == "GET" else QUERIES.get(name, ()))
        in_form = sorted(FORM_NAMES) if method == "POST" else []

        def with_address(part: str, value: Any) -> Request:
            return method, reverse(name, kwargs=own | {part: value}), query, form

        def with_query(part: str, value: Any) -> Request:
            return method, reverse(name, kwargs=own), query | {part: value}, form

        def with_form(part: str, value: Any) -> Request:
            written = WRITTEN.get(part, "{}").format(value)
            return method, reverse(name, kwargs=own), query, form | {part: written}

        for parts, table, request in (
            (own, OF_PAGE, with_address),
            (in_query, NAMES, with_query),
            (in_form, NAMES, with_form),
        ):
            for part in parts:
                if kind := self.kind(name, part, table):
                    self.compare(f"{method} {name} {part}", kind, partial(request, part))

    def kind(self, page: str, part: str, table: dict[str, str]) -> str:
        """Return the kind of what a name stands for; a fault for one that the table lacks."""
        first = ROUTES[page][0].split("/")[0]
        keys = (f"{page} {part}", f"{first} {part}", part)
        for key in keys:
            if key in table:
                return table[key]
        self.faults.append(f"{page}: say in tests/security/page_matrix.py what {part!r} names")
        return ""

    def own_address(self, name: str) -> Names:
        """Return the arguments of the page for the tenant's own things."""
        path, pattern = ROUTES[name]
        first = path.split("/")[0]
        return {
            part: self.ours.names[kind] if (kind := self.kind(name, part, OF_PAGE)) else VERBS.get(first, "")
            for part in pattern.pattern.regex.groupindex
        }

    def resolved(self, values: Names) -> Names:
        known = self.ours.names | {"base model pk": BaseModel.objects.get().pk}
        return {
            name: known[raw[1:]] if isinstance(raw, str) and raw[1:] in known else raw for name, raw in values.items()
        }

    def compare(self, where: str, kind: str, request: Callable[[Any], Request]) -> None:
        """Hold the answer to the other project's name against that to a name which exists nowhere, and to our own."""
        their_name, no_name, our_name = self.theirs.names[kind], self.none[kind], self.ours.names[kind]
        status, text = self.send(*request(their_name))
        none_status, none_text = self.send(*request(no_name))
        expected = none_text.replace(str(no_name), str(their_name))
        if THEIRS in text.replace(str(their_name), ""):
            place = text.replace(str(their_name), "").index(THEIRS)
            self.faults.append(f"{where}: shows {text[max(0, place - 100) : place + 100]}")
        if (status, text) != (none_status, expected):
            self.faults.append(f"{where}: {status} for theirs, {none_status} for none: {difference(text, expected)}")
        ours_status, ours_text = self.send(*request(our_name))
        if (ours_status, ours_text) == (none_status, none_text.replace(str(no_name), str(our_name))):
            self.faults.append(f"{where}: is not looked up, our own gets {ours_status}")


def difference(one: str, other: str) -> str:
    """Return the first lines in which two pages differ."""
    lines = [line for line in unified_diff(other.splitlines(), one.splitlines(), n=0, lineterm="") if line[0] in "+-"]
    return " ".join(line.strip()[:150] for line in lines[2:8])


@pytest.mark.threat("A5")
@pytest.mark.slow
def test_another_projects_thing_is_on_no_page(base_model: BaseModel, tmp_path: Path, settings: Any) -> None:
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, f"{page_matrix.__name__}.noting"]
    ours, theirs = tenant(OURS, base_model, tmp_path), tenant(THEIRS, base_model, tmp_path, versions=3)
    walk = Walk(signed_in(ours.person), ours, theirs)
    for name in PAGES:
        for method in ("GET", "POST"):
            walk.try_page(name, method)
    assert not walk.faults, "\n".join(walk.faults)
