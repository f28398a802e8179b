"""Two projects with one object of every kind: the owner of one names the other's, in each place that the API has.

The calls come from the OpenAPI description. A new parameter or field that tests/security/matrix.py does not know fails.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import transaction
from django.test import Client
from drf_spectacular.generators import SchemaGenerator

from registry.models import BaseModel
from tests.api.rights import signed_in
from tests.builders.adapters import write_adapter
from tests.builders.rows_of_project import project_rows
from tests.builders.tenants import Tenant, nowhere, tenant
from tests.security.matrix import INSIDE, MEANT, NEW_NAME, OF_PEOPLE, QUERIES, Operation, operations

OURS, THEIRS, NOWHERE = "lemur", "zebra", "qqqqq"
PREFIX = "/api/v1"
# What a list that has nothing to show may answer besides its rows.
SHARED_LISTS = {"/base-models/"}
Names = dict[str, Any]
Answer = tuple[int, str]
Request = tuple[Names, Names, Names]


@pytest.fixture(scope="module")
def described() -> list[Operation]:
    return list(operations(SchemaGenerator().get_schema(request=None, public=True)))


@pytest.fixture
def ours(base_model: BaseModel, tmp_path: Path) -> Tenant:
    return tenant(OURS, base_model, tmp_path)


@pytest.fixture
def theirs(base_model: BaseModel, tmp_path: Path) -> Tenant:
    """A third version, so that the number of one exists which the other project's adapter lacks."""
    return tenant(THEIRS, base_model, tmp_path, versions=3)


class Attack:
    """A person or a token of one project who names the things of another."""

    def __init__(self, client: Client, ours: Tenant, theirs: Tenant, folder: Path) -> None:
        self.client, self.ours, self.theirs, self.folder = client, ours, theirs, folder
        self.is_token = "HTTP_AUTHORIZATION" in client.defaults
        self.names = {"theirs": theirs.names, "nowhere": nowhere(theirs.names, THEIRS)}
        self.before = project_rows(theirs.project)
        self.faults: list[str] = []
        self.answers: dict[str, Answer] = {}

    def send(self, operation: Operation, names: Names, query: Names, body: Names, *, harmless: bool = True) -> Answer:
        """Make the call and undo what it did; one that is not `harmless` must leave the other project's rows alone."""
        path = re.sub(r"\{\w+\}", lambda part: str(names[part[0]]), operation.path)
        call = f"{operation.method} {path} {query} {body}"
        if call in self.answers:
            return self.answers[call]
        with transaction.atomic():
            answer = self.answer(operation, PREFIX + path, query, body)
            content = b"".join(answer.streaming_content) if answer.streaming else answer.content
            after = self.before if harmless else project_rows(self.theirs.project)
            transaction.set_rollback(True)
        for table in (table for table, digest in after.items() if digest != self.before[table]):
            self.faults.append(f"{call}: changes {table} of the other project")
        self.answers[call] = answer.status_code, content.decode(errors="replace")
        return self.answers[call]

    def answer(self, operation: Operation, path: str, query: Names, body: Names) -> Any:
        if operation.method == "get":
            return self.client.get(path, query)
        if operation.method == "delete":
            return self.client.delete(f"{path}?{urlencode(query)}")
        if self.files_of(body):
            return self.client.post(path, body | self.files_of(body))
        return self.client.generic(operation.method.upper(), path, json.dumps(body), "application/json")

    def files_of(self, body: Names) -> dict[str, Any]:
        """Return the files for which the body has a placeholder."""
        if "adapter_config" in body:
            files = write_adapter(self.folder / "upload", seed=77)
            weights = (files / "adapter_model.safetensors").read_bytes()
            config = {"adapter_config": io.BytesIO((files / "adapter_config.json").read_bytes())}
            if "header" in body:
                length = 8 + int.from_bytes(weights[:8], "little")
                return config | {"header": io.BytesIO(weights[:length]), "size": len(weights)}
            return config | {"adapter_model": io.BytesIO(weights)}
        if "file" in body:
            return {"file": SimpleUploadedFile("rows.jsonl", b'{"text": "of nobody"}\n' * 30)}
        return {}

    def try_every_name(self, operation: Operation) -> None:
        """Put the other project's thing and one that exists nowhere into each place of the operation, one at a time."""
        own = {part: self.ours.names.get(operation.kind(part) or "", "tiny") for part in operation.of_path}
        query = self.query(operation)

        def in_path(part: str, value: Any) -> Request:
            return own | {part: value}, query, self.body(operation)

        def in_query(name: str, value: Any) -> Request:
            return own, query | {name: value}, {}

        def in_body(name: str, value: Any) -> Request:
            return own, query, self.body(operation, name, value)

        for names, request in ((operation.of_path, in_path), (operation.query, in_query), (operation.fields, in_body)):
            for name in names:
                if kind := operation.kind(name):
                    self.compare(operation, name, kind, partial(request, name))

    def query(self, operation: Operation) -> Names:
        """Return the tenant's own query."""
        return {name: self.resolved(raw) for name, raw in QUERIES.get(operation.key, {}).items()}

    def body(self, operation: Operation, name: str = "", value: Any = None) -> Names:
        """Return the tenant's own body, with the value in the field `name`."""
        bodies = operation.bodies()
        chosen = next((body for body in bodies if name in body), bodies[0])
        if name in ("folder", "upload"):
            chosen = {}
        body = {field: self.resolved(raw) for field, raw in chosen.items()}
        if name in INSIDE:
            body |= INSIDE[name](value)
        elif name:
            body[name] = [1, value] if name == "versions" else value
        return body

    def resolved(self, raw: Any) -> Any:
        if isinstance(raw, list):
            return [self.resolved(each) for each in raw]
        return self.ours.names.get(raw[1:], raw) if isinstance(raw, str) and raw.startswith("@") else raw

    def compare(self, operation: Operation, place: str, kind: str, request: Callable[[Any], Request]) -> None:
        """Hold the answer to the other project's name against that to a name which exists nowhere, and to our own."""
        new, kind = kind.startswith(NEW_NAME), kind.removeprefix(NEW_NAME)
        where = f"{operation.key} {place}"
        their_name, no_name = self.names["theirs"][kind], self.names["nowhere"][kind]
        status, text = self.send(operation, *request(their_name), harmless=False)
        none_status, none_text = self.send(operation, *request(no_name))
        expected = none_text.replace(str(no_name), str(their_name))
        if THEIRS in text.replace(str(their_name), ""):
            self.faults.append(f"{where}: shows {self.excerpt(text.replace(str(their_name), ''))}")
        if where in MEANT:
            return
        if status != none_status or (text != expected and not (new and status < 300)):
            self.faults.append(f"{where}: {status} {text[:300]} for theirs, {none_status} {expected[:300]} for none")
        if new or (where in OF_PEOPLE and self.is_token):
            return
        if operation.method != "get" and status not in (403, 404, 422):
            self.faults.append(f"{where}: is not refused, {status} {text[:300]}")
        our_name = self.ours.names[kind]
        ours_status, ours_text = self.send(operation, *request(our_name))
        if (ours_status, ours_text) == (none_status, none_text.replace(str(no_name), str(our_name))):
            self.faults.append(f"{where}: is not looked up, our own gets {ours_status} {ours_text[:300]}")

    def excerpt(self, text: str) -> str:
        place = text.index(THEIRS)
        return text[max(0, place - 100) : place + 100]

    def read_lists(self, operation: Operation) -> None:
        """Read a resource without a filter, and with each that names nothing of a project."""
        if operation.method != "get" or operation.of_path or operation.path in SHARED_LISTS:
            return
        own = self.query(operation)
        for name, schema in [("", {}), *operation.query.items()]:
            query = {**own, name: self.plain(schema)} if name and not operation.kind(name) else own
            _, text = self.send(operation, {}, query, {})
            if THEIRS in text:
                self.faults.append(f"{operation.key} {query}: shows {self.excerpt(text)}")

    def plain(self, schema: Names) -> Any:
        """Return a value that the description allows."""
        schema = schema.get("items", schema)
        if "enum" in schema:
            return schema["enum"][0]
        return {"integer": 1, "boolean": "true"}.get(schema.get("type", ""), "2026-01-01T00:00:00Z")


def attackers(ours: Tenant) -> dict[str, Client]:
    token = {"Authorization": f"Bearer {ours.token}"}
    return {"person": signed_in(ours.person), "token": Client(headers=token, raise_request_exception=False)}


def test_every_name_of_the_description_is_known(described: list[Operation]) -> None:
    assert len(described) > 100
    assert [fault for operation in described for fault in operation.faults()] == []


@pytest.mark.threat("A5")
@pytest.mark.slow
@pytest.mark.parametrize("who", ["person", "token"])
def test_another_projects_thing_is_as_one_that_exists_nowhere(
    described: list[Operation], ours: Tenant, theirs: Tenant, tmp_path: Path, who: str
) -> None:
    attack = Attack(attackers(ours)[who], ours, theirs, tmp_path)
    for operation in described:
        attack.try_every_name(operation)
        attack.read_lists(operation)
    assert not attack.faults, "\n".join(attack.faults)
