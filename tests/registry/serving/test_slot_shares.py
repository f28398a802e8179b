"""Slots of a shared cluster: no project's requests take what is another's share, and free slots are lent."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from django.test import Client
from hypothesis import given
from hypothesis import strategies as st

from adapterhub.accounts.models import ApiToken, Membership, Project, User
from adapterhub.core.errors import Invalid
from registry.models import Adapter, AdapterVersion, Alias, Cluster
from registry.serving.desired_versions import waiting_versions, wanted_versions
from registry.serving.routing_table import routing_table
from registry.serving.slot_shares import parted, shared_out
from registry.serving.valkey import valkey as connect
from serving_client import Share
from serving_client.protocol import WANTS
from tests.builders.people import member
from tests.builders.rest import client, problem

PROJECTS = ("owner", "a", "b")


def test_slots_are_parted_as_granted_and_the_rest_equally() -> None:
    assert parted(8, "owner", {}) == {"owner": 8}
    assert parted(8, "owner", {"a": 3}) == {"a": 3, "owner": 5}
    assert parted(8, "owner", {"a": None, "b": 1}) == {"a": 3, "b": 1, "owner": 4}
    assert parted(1, "owner", {"a": None}) == {"a": 0, "owner": 1}


@given(
    st.integers(1, 12),
    st.dictionaries(st.sampled_from(PROJECTS[1:]), st.none() | st.integers(1, 4)),
    st.lists(st.tuples(st.integers(0, 30).map(str), st.sampled_from(PROJECTS)), max_size=40),
)
def test_nobody_loses_a_slot_of_its_share_to_another(
    total: int, granted: dict[str, int | None], drawn: list[tuple[str, str]]
) -> None:
    sharing = [(name, project) for name, project in dict.fromkeys(drawn) if project in {*granted, "owner"}]
    candidates = [(f"{project}.{name}", project, 1) for name, project in sharing]
    parts = parted(total, "owner", granted)
    chosen = shared_out(candidates, parts, total)
    assert len(chosen) == min(total, len({name for name, *_ in candidates}))
    for project, part in parts.items():
        own = [name for name, of, _ in candidates if of == project]
        if sum(parts.values()) <= total:
            assert own[:part] == [name for name in own[:part] if name in chosen]


@pytest.fixture
def neighbour(alias: Alias, alice: User) -> tuple[Project, User]:
    project = Project.objects.create(slug="far", name="Far")
    erna = member("erna", project, Membership.Role.ADMIN)
    alias.cluster.grant("far", by=alice.as_actor())
    return project, erna


def ask_for(versions: list[AdapterVersion]) -> None:
    with connect() as server:
        for version in versions:
            server.xadd(WANTS, {"version": version.served_name})


def test_a_request_that_is_repeated_keeps_its_place(
    alias: Alias, valkey: object, candidate: AdapterVersion, make_version: Callable[..., AdapterVersion]
) -> None:
    other = make_version(alias.version.adapter, seed=71)
    ask_for([candidate, other, candidate])
    assert waiting_versions(alias.cluster) == [candidate.served_name, other.served_name]


def made(
    project: Project, by: User, cluster: Cluster, make_version: Callable[..., AdapterVersion], count: int
) -> list[AdapterVersion]:
    """An alias that accepts the grant, and so many versions that requests ask for."""
    adapter = Adapter.create(project=project, slug="theirs", base_model=cluster.base_model, by=by.as_actor())
    versions = [make_version(adapter, seed=50 + number) for number in range(count)]
    Alias.create(project=project, name="theirs", cluster=cluster, version=versions[0], policy={}, by=by.as_actor())
    return versions


def test_eight_calls_of_a_neighbour_evict_nothing_of_ours(
    alias: Alias,
    valkey: object,
    neighbour: tuple[Project, User],
    candidate: AdapterVersion,
    make_version: Callable[..., AdapterVersion],
    alice: User,
) -> None:
    alias.set_policy({"quorum": 1}, by=alice.as_actor())
    Alias.create(
        project=alias.project, name="second", cluster=alias.cluster, version=candidate, policy={}, by=alice.as_actor()
    )
    Cluster.objects.update(max_loras=4)
    alias.cluster.refresh_from_db()
    versions = made(*neighbour, alias.cluster, make_version, 8)
    ask_for(versions)
    wanted = wanted_versions(alias.cluster)
    assert len(wanted) == 4
    assert {alias.version.served_name, candidate.served_name} <= set(wanted)
    alias.cluster.change_grant("far", slots=1, reason="less", by=alice.as_actor())
    own = [make_version(alias.version.adapter, seed=70 + number) for number in range(4)]
    ask_for(own)
    wanted = wanted_versions(alias.cluster)
    assert alias.version.served_name in wanted, "a protected alias is pinned against its own project's calls"
    assert sum(version.project == alias.project for version in wanted.values()) == 3
    assert sum(version.project == neighbour[0] for version in wanted.values()) == 1


def test_shares_above_the_cluster_are_refused(alias: Alias, alice: User, ci: str) -> None:
    by = alice.as_actor()
    alias.cluster.grant("far", slots=5, by=by)
    with pytest.raises(Invalid, match="grant at most 2 more"):
        alias.cluster.grant("other", slots=3, by=by)
    alias.cluster.grant("other", slots=2, by=by)
    with pytest.raises(Invalid, match="Of 7 slots a replica 7 are granted"):
        alias.cluster.change(max_loras=7, reason="smaller", by=by)
    path = f"/api/v1/clusters/{alias.cluster.slug}/grants/"
    body = {"project": "other", "slots": 9, "reason": "more"}
    problem(client(ci).patch(path, body, content_type="application/json"), 422, "share_too_large")
    changed = (
        client(ci).patch(path, {**body, "slots": 1, "tokens_per_min": 600}, content_type="application/json").json()
    )
    assert (changed["slots"], changed["requests_per_s"], changed["tokens_per_min"]) == (1, None, 600)
    problem(client(ci).patch(path, {**body, "slots": 0}, content_type="application/json"), 422, "invalid")


def test_the_routers_get_the_limits_of_those_who_have_no_cluster_of_their_own(
    alias: Alias, neighbour: tuple[Project, User], make_version: Callable[..., AdapterVersion], alice: User
) -> None:
    (version,) = made(*neighbour, alias.cluster, make_version, 1)
    alias.cluster.change_grant("far", requests_per_s=2.5, reason="x", by=alice.as_actor())
    table = routing_table()
    key = table.versions[version.served_name].share
    assert key
    assert table.shares == {key: Share(2.5, None)}
    assert table.versions[alias.version.served_name].share is None


def http_of(project: Project) -> Client:
    return client(ApiToken.issue(name="theirs", project=project, scopes=["read", "operate"])[1])


def test_a_grantee_changes_no_share(alias: Alias, neighbour: tuple[Project, User]) -> None:
    path = f"/api/v1/clusters/{alias.cluster.slug}/grants/"
    body = {"project": "far", "slots": 7, "reason": "more"}
    assert http_of(neighbour[0]).patch(path, body, content_type="application/json").status_code == 404
