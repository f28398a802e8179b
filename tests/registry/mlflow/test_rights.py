"""MLflow's calls under the rules of ours: scopes, other tenants, audit, hostile paths and searches."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.test import Client

from adapterhub.accounts.models import ApiToken, Project, User
from registry.api.mlflow.urls import urlpatterns
from registry.models import Adapter, AdapterVersion, Alias, Cluster, StagedFile
from registry.tasks import drop_staged_files
from registry.uploads import staging
from tests.builders import write_adapter

ROOT, FILES = "/api/2.0/mlflow/", "/api/2.0/mlflow-artifacts/artifacts"
VERSION = {"name": "dora", "version": "1"}
# Every call, with the scope that it needs; what is sent is refused for nothing but the caller's rights.
CALLS: list[tuple[str, str, dict[str, Any], str]] = [
    ("POST", "registered-models/create", {"name": "eu.new"}, "publish"),
    ("GET", "registered-models/get", {"name": "dora"}, "read"),
    ("PATCH", "registered-models/update", {"name": "dora", "description": "x"}, "publish"),
    ("POST", "registered-models/set-tag", {"name": "dora", "key": "a", "value": "b"}, "publish"),
    ("DELETE", "registered-models/delete-tag", {"name": "dora", "key": "a"}, "publish"),
    ("POST", "registered-models/alias", {"name": "dora", "alias": "compliance", "version": "2"}, "operate"),
    ("GET", "registered-models/alias", {"name": "dora", "alias": "compliance"}, "read"),
    ("DELETE", "registered-models/alias", {"name": "dora", "alias": "compliance"}, "operate"),
    ("GET", "registered-models/get-latest-versions", {"name": "dora"}, "read"),
    ("POST", "registered-models/get-latest-versions", {"name": "dora"}, "read"),
    ("POST", "registered-models/rename", {"name": "dora", "new_name": "x"}, "publish"),
    ("DELETE", "registered-models/delete", {"name": "dora"}, "publish"),
    ("POST", "model-versions/create", {"name": "dora", "source": "mlflow-artifacts:/uploads/eu/run"}, "publish"),
    ("GET", "model-versions/get", VERSION, "read"),
    ("GET", "model-versions/get-download-uri", VERSION, "read"),
    ("PATCH", "model-versions/update", {**VERSION, "description": "x"}, "publish"),
    ("POST", "model-versions/set-tag", {**VERSION, "key": "a", "value": "b"}, "publish"),
    ("DELETE", "model-versions/delete-tag", {**VERSION, "key": "a"}, "publish"),
    ("POST", "model-versions/transition-stage", {**VERSION, "stage": "Production"}, "publish"),
    ("DELETE", "model-versions/delete", VERSION, "publish"),
]
ROUTES = [
    ("GET", f"{FILES}?path=uploads/eu/run", "publish"),
    ("PUT", f"{FILES}/uploads/eu/run/file", "publish"),
    ("GET", f"{FILES}/uploads/eu/run/kept", "publish"),
    ("DELETE", f"{FILES}/uploads/eu/run/kept", "publish"),
    ("GET", f"{FILES}?path=versions/eu.dora/1", "read"),
    ("GET", f"{FILES}/versions/eu.dora/1/adapter_config.json", "read"),
]
SCOPES = ["read", "train", "publish", "operate", "infer", "audit", "admin"]


def client(project: Project, scopes: list[str], owner: User) -> Client:
    token = ApiToken.issue(name="mlflow", project=project, scopes=scopes, created_by=owner)[1]
    return Client(headers={"Authorization": f"Bearer {token}"}, raise_request_exception=False)


def send(http: Client, method: str, call: str, fields: dict[str, Any]) -> Any:
    if method == "GET":
        return http.get(ROOT + call, fields)
    return http.generic(method, ROOT + call, json.dumps(fields), content_type="application/json")


def send_route(http: Client, method: str, url: str) -> Any:
    return http.generic(method, url, b"x" if method == "PUT" else b"", content_type="application/octet-stream")


@pytest.fixture
def staged(project: Project, alice: User, tmp_path: Path) -> StagedFile:
    (tmp_path / "kept").write_bytes(b"theirs")
    with (tmp_path / "kept").open("rb") as source:
        return staging.replace(project, "run/kept", source, by=alice.as_actor())


def test_every_path_is_tried_here() -> None:
    named = {str(pattern.pattern).removeprefix("mlflow/") for pattern in urlpatterns if "<" not in str(pattern.pattern)}
    assert named - {"mlflow-artifacts/artifacts"} == {call for _, call, _, _ in CALLS} | {
        "registered-models/search",
        "model-versions/search",
    }


@pytest.mark.threat("A5")
def test_another_tenant_gets_what_nobody_has(
    alias: Alias, candidate: AdapterVersion, staged: StagedFile, charlie: User
) -> None:
    """Each call about a thing of theirs is answered as one about a thing that exists nowhere, and changes nothing."""
    other = Project.objects.get(slug="other")
    http = client(other, SCOPES, charlie)
    for method, call, fields, _ in CALLS:
        theirs = send(http, method, call, fields)
        nowhere = send(
            http, method, call, fields | {"name": fields["name"].replace("eu.", "no.").replace("dora", "none")}
        )
        text = theirs.content.decode().replace("'eu'", "'no'")
        assert theirs.status_code in (404, 422), (call, theirs.content)
        assert (theirs.status_code, text) == (nowhere.status_code, nowhere.content.decode()), call
    for method, url, _ in ROUTES:
        theirs, nowhere = send_route(http, method, url), send_route(http, method, url.replace("/eu", "/no"))
        assert (theirs.status_code, nowhere.status_code) == (404, 404), (method, url, theirs.content)
    for kind in ("registered-models", "model-versions"):
        rows = http.get(f"{ROOT}{kind}/search", {"filter": "name = 'eu.dora'"})
        assert next(iter(rows.json().values())) == []
    assert StagedFile.objects.count() == 1
    Alias.objects.get(name="compliance", generation=1)


@pytest.mark.threat("A5")
def test_a_call_needs_its_scope(alias: Alias, candidate: AdapterVersion, staged: StagedFile, alice: User) -> None:
    project = alias.project
    for method, call, fields, scope in CALLS:
        assert send(Client(), method, call, fields).status_code == 401
        refused = send(client(project, [each for each in SCOPES if each != scope], alice), method, call, fields)
        assert (refused.status_code, refused.json()["error_code"]) == (403, "PERMISSION_DENIED"), call
        allowed = send(client(project, [scope], alice), method, call, fields)
        assert allowed.status_code not in (401, 403, 404, 500), (call, allowed.content)
    for method, url, scope in ROUTES:
        assert send_route(Client(), method, url).status_code == 401
        refused = send_route(client(project, [each for each in SCOPES if each != scope], alice), method, url)
        assert refused.status_code == 403, (method, url)
    assert StagedFile.objects.count() == 1


@pytest.mark.threat("B1")
def test_a_protected_alias_is_not_moved(alias: Alias, candidate: AdapterVersion, ci: str) -> None:
    Alias.objects.update(policy={"quorum": 1})
    http = Client(headers={"Authorization": f"Bearer {ci}"})
    fields = {"name": "dora", "alias": "compliance", "version": "2"}
    refused = send(http, "POST", "registered-models/alias", fields)
    assert (refused.status_code, refused.json()["code"]) == (403, "alias_protected")
    Alias.objects.get(name="compliance", generation=1, version__number=1)


def test_an_alias_of_another_adapter_is_not_taken(
    alias: Alias, project: Project, ci: str, alice: User, tmp_path: Path
) -> None:
    other = Adapter.create(
        project=project, slug="other", base_model=alias.version.adapter.base_model, by=alice.as_actor()
    )
    AdapterVersion.publish(other, write_adapter(tmp_path / "o", seed=8), method="lora", by=alice.as_actor())
    http = Client(headers={"Authorization": f"Bearer {ci}"})
    refused = send(http, "POST", "registered-models/alias", {"name": "other", "alias": "compliance", "version": "1"})
    assert (refused.status_code, refused.json()["code"]) == (409, "alias_of_another")
    Alias.objects.get(name="compliance", generation=1)


def test_a_new_alias_needs_the_one_cluster_that_serves_it(
    version: AdapterVersion, cluster: Cluster, ci: str, alice: User
) -> None:
    http = Client(headers={"Authorization": f"Bearer {ci}"})
    fields = {"name": "dora", "alias": "champion", "version": "1"}
    second = Cluster.create(project=cluster.project, slug="b", base_model=cluster.base_model, by=alice.as_actor())
    refused = send(http, "POST", "registered-models/alias", fields)
    assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, "alias")
    assert {"cpu", "b"} <= {*refused.json()["detail"].replace(",", "").replace(":", "").split()}
    second.delete()
    assert send(http, "POST", "registered-models/alias", fields).status_code == 200


@pytest.mark.threat("E1")
@pytest.mark.parametrize(
    "path",
    [
        "uploads/eu/../../x",
        "uploads/eu/a//b",
        "uploads/eu/%2e%2e/x",
        "uploads/eu/..%252fx",
        "uploads/eu/",
        "uploads/",
        "x",
        "versions/eu.dora/1",
        "uploads/eu/" + "a/" * 30 + "x",
        "uploads/eu/" + "a" * 1500,
    ],
)
def test_a_path_never_leads_elsewhere(project: Project, ci: str, path: str) -> None:
    http = Client(headers={"Authorization": f"Bearer {ci}"}, raise_request_exception=False)
    answer = http.generic("PUT", f"{FILES}/{path}", b"x", content_type="application/octet-stream")
    assert answer.status_code in (200, 404, 422), answer.content
    # A name that was encoded twice is a name: the bytes lie under the row's id.
    assert answer.status_code == 422 or StagedFile.objects.get().path == "..%2fx"


@pytest.mark.parametrize(
    "text",
    [
        "name",
        "name = ",
        "name = 'a' OR name = 'b'",
        "name = 'a' AND",
        "name = 'a' name = 'b'",
        "name LIKE '((((%'",
        "creation_timestamp > 5",
        "tags.x LIKE '%'",
        "'; DROP TABLE registry_adapter; --",
        "name = 'a\0'",
        "version_number = 'x'",
        "(" * 4000,
    ],
)
def test_a_search_is_read_or_refused_by_name(adapter: Adapter, ci: str, text: str) -> None:
    http = Client(headers={"Authorization": f"Bearer {ci}"}, raise_request_exception=False)
    for kind in ("registered-models", "model-versions"):
        answer = http.get(f"{ROOT}{kind}/search", {"filter": text})
        if text.startswith("name LIKE"):
            assert answer.status_code == 200, answer.content
        else:
            assert (answer.status_code, answer.json()["error_code"]) == (422, "INVALID_PARAMETER_VALUE")
    for words in ({"order_by": "secret"}, {"max_results": 0}, {"page_token": "x"}, {"colour": "red"}):
        assert http.get(f"{ROOT}model-versions/search", words).status_code == 422


def test_a_caller_of_several_projects_names_them(adapter: Adapter, alice: User, client: Client) -> None:
    """A person in a browser's session: names carry the project, and a new one needs it."""
    twin = Project.objects.create(slug="us", name="US")
    twin.memberships.create(user=alice, role="admin")
    Adapter.create(project=twin, slug="dora", base_model=adapter.base_model, by=alice.as_actor())
    client.force_login(alice)
    names = [each["name"] for each in client.get(f"{ROOT}registered-models/search").json()["registered_models"]]
    assert names == ["eu.dora", "us.dora"]
    assert client.get(f"{ROOT}registered-models/get", {"name": "dora"}).json()["code"] == "ambiguous_name"
    assert client.get(f"{ROOT}registered-models/get", {"name": "us.dora"}).status_code == 200


@pytest.mark.threat("D2")
def test_staged_files_have_a_bound(project: Project, ci: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "MOST_BYTES", 10)
    http = Client(headers={"Authorization": f"Bearer {ci}"})

    def put(name: str, body: bytes) -> Any:
        return http.generic("PUT", f"{FILES}/uploads/eu/{name}", body, content_type="application/octet-stream")

    assert put("a", b"12345678").status_code == 200
    assert put("b", b"12345678").json()["code"] == "body_too_large"
    assert put("a", b"1234567890").status_code == 200, "what it takes the place of makes room"
    assert put("c", b"1").json()["code"] == "staging_full"


def test_what_nobody_publishes_is_dropped_after_a_day(staged: StagedFile) -> None:
    drop_staged_files()
    StagedFile.objects.update(received_at=staged.received_at - timedelta(days=2))
    drop_staged_files()
    assert not StagedFile.objects.exists()
