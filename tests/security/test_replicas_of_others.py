"""A project's operator registers a server of their own, and gets nothing of another project's."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.apps import apps
from django.test import Client

from adapterhub import environment
from adapterhub.accounts.models import ApiToken, Membership, Project, User
from adapterhub.audit.models import AuditEvent
from adapterhub.core.errors import Conflict, Invalid
from registry.models import Adapter, AdapterVersion, Alias, BaseModel, Cluster, ClusterGrant, Replica
from registry.serving.reconciler import reconcile
from registry.serving.routing_table import routing_table
from registry.serving.valkey import valkey
from serving_client.engine_hosts import normalised
from serving_client.protocol import WANTS
from tests.builders.fleet import OnDisk, names, published
from tests.builders.rest import client, problem
from tests.fakes.engine import FakeEngine
from tests.fakes.server import Server

Pair = tuple[FakeEngine, Server]


@pytest.fixture
def other(charlie: User) -> Project:
    return Project.objects.get(slug="other")


@pytest.fixture
def operator(other: Project, charlie: User) -> Any:
    """A token of the other project, with every scope that a token of one person has."""
    scopes = ["read", "publish", "operate", "infer"]
    return client(ApiToken.issue(name="theirs", project=other, scopes=scopes, created_by=charlie)[1])


@pytest.fixture
def theirs(other: Project, base_model: BaseModel, charlie: User) -> Cluster:
    return Cluster.create(project=other, slug="trap", base_model=base_model, by=charlie.as_actor())


@pytest.fixture
def trap(fresh_database: str, theirs: Cluster, charlie: User) -> Iterator[Pair]:
    """Their server, which speaks as an engine and would answer whatever it likes."""
    engine = FakeEngine()
    engine.folders = OnDisk()
    with Server(engine.app()) as server:
        theirs.add_replica(url=server.url, by=charlie.as_actor())
        yield engine, server


def ask_for(version: AdapterVersion) -> None:
    """Ask for a cold version, as a router does."""
    with valkey() as store:
        store.xadd(WANTS, {"version": version.served_name})


def replicas_of(version: AdapterVersion) -> set[str]:
    return set(published().versions[version.served_name].replicas)


@pytest.mark.threat("A1")
def test_cold_versions_of_others_are_not_loaded_there(
    served: Alias, candidate: AdapterVersion, engines: list[Pair], trap: Pair
) -> None:
    """Before, ten cold calls drove the production version to their server, which then answered for it."""
    ask_for(candidate)
    reconcile()
    ours = {server.url for _, server in engines}
    assert names(trap) == set()
    assert trap[0].received == []
    assert replicas_of(candidate) == replicas_of(served.version) == ours


@pytest.mark.threat("A1")
def test_a_replica_that_says_it_holds_them_gets_no_requests(served: Alias, engines: list[Pair], trap: Pair) -> None:
    """Neither what it reports nor what a row says of it makes it a holder: another hand loaded it there."""
    name = served.version.served_name
    Replica.objects.filter(url=trap[1].url).update(loaded={name: "/x"}, is_healthy=True)
    assert trap[1].url not in routing_table().versions[name].replicas
    trap[0].adapters[name] = "/x"
    reconcile()
    assert trap[1].url not in replicas_of(served.version)
    assert (Replica.objects.get(url=trap[1].url).foreign, names(trap)) == ([name], {name})


@pytest.mark.threat("A1")
def test_a_grant_alone_brings_nobodys_versions(
    served: Alias, candidate: AdapterVersion, trap: Pair, theirs: Cluster, charlie: User
) -> None:
    theirs.grant("eu", by=charlie.as_actor())
    ask_for(candidate)
    reconcile()
    assert names(trap) == set()


@pytest.mark.threat("A1")
def test_a_granted_cluster_serves_who_chose_it_until_it_is_withdrawn(
    served: Alias, candidate: AdapterVersion, trap: Pair, theirs: Cluster, charlie: User, alice: User
) -> None:
    theirs.grant("eu", by=charlie.as_actor(), reason="they asked")
    by = alice.as_actor()
    Alias.create(project=served.project, name="far", cluster=theirs, version=candidate, policy={}, by=by)
    reconcile()
    assert names(trap) == {candidate.served_name}
    assert trap[1].url in replicas_of(candidate)
    theirs.withdraw("eu", reason="no more", by=charlie.as_actor())
    reconcile()
    assert names(trap) == set()
    assert trap[1].url not in replicas_of(candidate)
    tags = AuditEvent.objects.filter(tag__startswith="cluster:grant").order_by("pk").values_list("tag", "project__slug")
    assert list(tags) == [
        ("cluster:granted", "other"),
        ("cluster:grant_accepted", "eu"),
        ("cluster:grant_withdrawn", "other"),
    ]


@pytest.mark.threat("A1")
def test_no_alias_without_a_grant(theirs: Cluster, version: AdapterVersion, project: Project, alice: User) -> None:
    with pytest.raises(Invalid) as refused:
        Alias.create(project=project, name="far", cluster=theirs, version=version, policy={}, by=alice.as_actor())
    assert (refused.value.field, refused.value.code) == ("cluster", "cluster_not_granted")


@pytest.mark.threat("A1")
def test_nobody_takes_a_granted_cluster_by_mistake(
    theirs: Cluster, version: AdapterVersion, ci: str, operator: Any
) -> None:
    """Its name alone is not enough, though it is granted: a typing error would send prompts to a stranger."""
    assert operator.post("/api/v1/clusters/trap/grants/", {"project": "eu"}).status_code == 201
    body = {"project": "eu", "name": "far", "cluster": "trap", "version": version.served_name}
    problem(client(ci).post("/api/v1/aliases/", body), 422, "unknown_cluster")
    assert client(ci).post("/api/v1/aliases/", {**body, "cluster": "other.trap"}).status_code == 201


@pytest.mark.threat("A1")
def test_only_the_owner_grants_and_sees_the_grants(theirs: Cluster, ci: str, operator: Any) -> None:
    grants = "/api/v1/clusters/trap/grants/"
    assert client(ci).post(grants, {"project": "eu"}).status_code == 404
    assert operator.post(grants, {"project": "eu"}).status_code == 201
    problem(operator.post(grants, {"project": "eu"}), 409, "already_granted")
    problem(operator.post(grants, {"project": "other"}), 422, "own_cluster")
    assert [row["project"] for row in operator.get(grants).json()] == ["eu"]
    assert operator.post(f"{grants}withdraw/", {"project": "eu", "reason": "enough"}).status_code == 200
    problem(operator.post(f"{grants}withdraw/", {"project": "eu", "reason": "again"}), 422, "not_granted")


@pytest.mark.threat("A1")
def test_a_person_grants_and_withdraws_on_the_page(theirs: Cluster, charlie: User, bob: User) -> None:
    page = Client()
    page.force_login(charlie)
    page.post("/clusters/other.trap/grant/", {"project": "eu"})
    assert ClusterGrant.objects.standing().get().offered_to == "eu"
    assert "not accepted yet" in page.get("/clusters/trap/").content.decode()
    page.post("/clusters/other.trap/withdraw/", {"project": "eu", "reason": "enough"})
    assert not ClusterGrant.objects.standing().exists()
    looker = Client()
    looker.force_login(bob)
    assert looker.post("/clusters/other.trap/grant/", {"project": "eu"}).status_code == 404


@pytest.mark.threat("A1")
def test_what_was_shared_before_goes_on(
    alias: Alias, other: Project, base_model: BaseModel, make_version: Callable[..., AdapterVersion], charlie: User
) -> None:
    """The migration grants a cluster to each project that it served: by an alias, or as the only one of its base."""
    theirs = Adapter.create(project=other, slug="theirs", base_model=base_model, by=charlie.as_actor())
    version = make_version(theirs, seed=5)
    assert version.served_name not in routing_table().versions
    migration = importlib.import_module("registry.migrations.0021_cluster_grants")
    migration.grant_what_is_shared(apps, None)
    grant = ClusterGrant.objects.get()
    assert (grant.cluster, grant.project, grant.offered_to) == (alias.cluster, other, "other")
    assert version.served_name in routing_table().versions


@pytest.mark.threat("A2")
@pytest.mark.parametrize("second", ["localhost", "127.0.0.2", "127.1", "0.0.0.0", "[::ffff:127.0.0.1]"])  # noqa: S104
def test_one_engine_under_two_addresses_is_one(
    cluster: Cluster, theirs: Cluster, alice: User, charlie: User, settings: Any, second: str
) -> None:
    """Two clusters that share an engine unload each other's versions for ever."""
    settings.ENGINE_HOSTS = ["127.0.0.0/8", "0.0.0.0", "::ffff:127.0.0.1", "localhost"]  # noqa: S104
    cluster.add_replica(url="http://127.0.0.1:9", by=alice.as_actor())
    with pytest.raises(Conflict) as own:
        cluster.add_replica(url=f"http://{second}:9", by=alice.as_actor())
    assert normalised(f"http://{second}:9") in own.value.detail
    assert "http://127.0.0.1:9 of cpu" in own.value.detail
    with pytest.raises(Conflict) as foreign:
        theirs.add_replica(url=f"http://{second}:9", by=charlie.as_actor())
    assert "cpu" not in foreign.value.detail
    cluster.add_replica(url=f"http://{second}:10", by=alice.as_actor())


@pytest.mark.threat("A2")
@pytest.mark.parametrize("path", ["/.", "/a/..", "/%2e", "/./", "//./", "?a", "#a", "/a/%2e%2e/", "/a//b", "/a\\b"])
def test_a_path_with_another_spelling_is_refused(cluster: Cluster, alice: User, settings: Any, path: str) -> None:
    """The attack: clients leave out what leads nowhere, so that the same engine answers under a second address."""
    settings.ENGINE_HOSTS = ["127.0.0.1"]
    with pytest.raises(Invalid, match="plain names"):
        cluster.add_replica(url=f"http://127.0.0.1:9{path}", by=alice.as_actor())
    cluster.add_replica(url="http://127.0.0.1:9/gpu-1/v2.0/", by=alice.as_actor())


@pytest.mark.threat("A2")
@pytest.mark.slow
def test_a_second_address_from_before_gets_nothing(
    served: Alias, engines: list[Pair], theirs: Cluster, settings: Any
) -> None:
    settings.ENGINE_HOSTS = ["127.0.0.1", "localhost"]
    second = engines[0][1].url.replace("127.0.0.1", "localhost")
    Replica.objects.create(cluster=theirs, url=second)
    reconcile()
    reconcile()
    replica = Replica.objects.get(url=second)
    assert (replica.is_healthy, "another address" in replica.message) == (False, True)
    assert names(engines[0]) == {served.version.served_name}


def answering(body: str, status: int = 200) -> Any:
    """Return an application that gives every request this answer."""

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"text/plain")]})
        await send({"type": "http.response.body", "body": body.encode()})

    return app


@pytest.mark.threat("D26")
@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254",
        "http://127.0.0.1:5432",
        "http://localhost:8100",
        "http://10.0.0.7:6379",
        "http://metadata.google.internal",
        "http://2130706433:8000",
        "http://[::1]:8000",
    ],
)
def test_an_address_that_no_operator_listed_is_no_replica(
    cluster: Cluster, ci: str, settings: Any, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is its name looked up: who runs its name server would hear of it, and could answer after a minute."""
    monkeypatch.setattr("adapterhub.outbound.addresses", lambda *_: pytest.fail("a name was looked up"))
    settings.ENGINE_HOSTS = ["127.0.0.1:8100", "gpu.example"]
    answer = client(ci).post("/api/v1/replicas/", {"cluster": "cpu", "url": url})
    assert "ADAPTERHUB_ENGINE_HOSTS" in problem(answer, 422, "forbidden_address")["detail"]
    assert not Replica.objects.exists()


@pytest.mark.threat("D26")
def test_a_listed_name_may_not_lead_to_the_clouds_credentials(
    settings: Any, cluster: Cluster, alice: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.ENGINE_HOSTS = ["gpu.example"]
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: [(0, 0, 0, "", ("169.254.169.254", 80))])
    with pytest.raises(Invalid):
        cluster.add_replica(url="http://gpu.example", by=alice.as_actor())


@pytest.mark.threat("D26")
def test_an_address_taken_from_the_list_is_asked_no_more(served: Alias, engines: list[Pair], settings: Any) -> None:
    reconcile()
    before = len(engines[0][0].received)
    settings.ENGINE_HOSTS = ["gpu.example"]
    reconcile()
    assert not Replica.objects.filter(is_healthy=True).exists()
    assert "ADAPTERHUB_ENGINE_HOSTS" in Replica.objects.all()[0].message
    assert len(engines[0][0].received) == before


@pytest.mark.threat("D26")
@pytest.mark.parametrize(
    ("body", "status"),
    [
        ("the-secret", 200),
        ("the-secret", 500),
        ('{"message": "the-secret"}', 404),
        ('{"error": {"message": "the-secret"}}', 400),
        ('{"data": [{"id": "the-secret", "parent": null}], "version": "the-secret"}', 200),
    ],
)
def test_nothing_of_another_services_answer_comes_back(
    fresh_database: str, cluster: Cluster, alice: User, body: str, status: int
) -> None:
    with Server(answering(body, status), lifespan="off") as server:
        cluster.add_replica(url=server.url, by=alice.as_actor())
        reconcile()
    replica = Replica.objects.get()
    assert replica.message
    assert "the-secret" not in f"{replica.message} {replica.engine_version} {replica.loaded} {replica.refused}"


@pytest.mark.threat("D26")
def test_the_embedded_engines_need_no_list(settings: Any, cluster: Cluster, alice: User) -> None:
    settings.ENGINE_HOSTS = environment.engine_hosts({})
    for number in range(2):
        cluster.add_replica(url=f"http://127.0.0.1:{8100 + number}", by=alice.as_actor())


@pytest.mark.threat("A3")
def test_a_name_that_another_project_uses_is_free(
    alias: Alias,
    adapter: Adapter,
    cluster: Cluster,
    base_model: BaseModel,
    operator: Any,
    other: Project,
    make_version: Callable[..., AdapterVersion],
) -> None:
    """A 409 would tell that somebody has this name."""
    new = {"project": "other", "slug": "dora", "base_model": "tiny"}
    assert operator.post("/api/v1/adapters/", new, format="json").status_code == 201
    assert operator.post("/api/v1/clusters/", {**new, "slug": "cpu"}, format="json").status_code == 201
    version = make_version(Adapter.objects.get(project=other), seed=7)
    assert version.served_name.startswith("other.dora.v1-")
    named = {"project": "other", "name": "compliance", "cluster": "cpu", "version": version.served_name}
    assert operator.post("/api/v1/aliases/", named, format="json").status_code == 201
    table = routing_table()
    assert table.aliases["other/compliance"].stable == version.served_name
    assert table.aliases["eu/compliance"].stable == alias.version.served_name
    problem(operator.post("/api/v1/adapters/", new, format="json"), 409, "slug_taken")


@pytest.mark.threat("A3")
def test_a_name_of_two_of_my_projects_is_qualified(
    alias: Alias, adapter: Adapter, base_model: BaseModel, other: Project, alice: User
) -> None:
    Adapter.create(project=other, slug="dora", base_model=base_model, by=alice.as_actor())
    me = Client()
    me.force_login(alice)
    assert me.get("/api/v1/adapters/dora/").status_code == 200
    Membership.objects.create(project=other, user=alice, role="admin")
    refusal = problem(me.get("/api/v1/adapters/dora/"), 409, "ambiguous_name")
    assert "eu.dora or other.dora" in refusal["detail"]
    problem(me.get("/api/v1/adapters/dora/versions/"), 409, "ambiguous_name")
    assert me.get("/adapters/dora/").status_code == 409
    for project in ("eu", "other"):
        assert me.get(f"/api/v1/adapters/{project}.dora/").json()["project"] == project
        assert me.get(f"/adapters/{project}.dora/").context["adapter"].project.slug == project
    assert len(me.get("/api/v1/adapters/eu.dora/versions/").json()["results"]) == 1
    assert len(me.get("/api/v1/adapters/other.dora/versions/").json()["results"]) == 0
