"""The cluster's page: replicas and the cluster are changed, drained and deleted, and projects get their shares."""

from __future__ import annotations

import html
from typing import Any

import pytest
from django.test import Client

from adapterhub.accounts.models import Membership, User
from registry.models import Alias, Cluster, ClusterGrant, Replica
from tests.builders.people import member

FORMS = ("Add a replica", "Change this replica", "Change this cluster", "Change the share")


@pytest.fixture
def holder(alias: Alias, alice: User) -> Replica:
    """The only replica of the alias' cluster, which holds what the alias serves."""
    replica: Replica = alias.cluster.add_replica(url="http://127.0.0.1:1", by=alice.as_actor())
    replica.saw({}, "0.32.0")
    replica.loaded = {alias.version.served_name: "/served/1"}
    replica.keep("loaded")
    alias.cluster.grant("far", slots=2, requests_per_s=1.5, by=alice.as_actor())
    return replica


@pytest.fixture
def lead(client: Client, alice: User) -> Client:
    client.force_login(alice)
    return client


def text_of(answer: Any) -> str:
    return str(answer.content.decode())


def test_a_replica_is_drained_moved_and_deleted_with_what_that_cuts_off(
    holder: Replica, alias: Alias, lead: Client
) -> None:
    page = text_of(lead.get("/clusters/cpu/"))
    assert [form for form in FORMS if form not in page] == []
    path = f"/replicas/{holder.pk}/"
    refused = lead.post(f"{path}drain/", {"reason": "x"})
    assert (refused.status_code, alias.version.served_name in text_of(refused)) == (409, True)
    assert lead.post(f"{path}drain/", {"reason": "x", "confirm": "on"}).status_code == 302
    assert "drained" in text_of(lead.get("/clusters/cpu/"))
    assert lead.post(f"{path}resume/", {"reason": "x"}).status_code == 302
    assert lead.post(f"{path}change_address/", {"reason": "x", "url": "http://127.0.0.1:3"}).status_code == 302
    holder.refresh_from_db()
    assert (holder.url, holder.draining_since) == ("http://127.0.0.1:3", None)
    assert lead.post(f"{path}saw/", {"reason": "x"}).status_code == 404
    assert lead.post(f"{path}remove/", {"reason": "x"}).status_code == 302
    assert not Replica.objects.exists()


@pytest.mark.parametrize(
    ("release", "words"),
    [
        ("0.24.1", "decode at 0.84 of the base model's speed"),
        ("0.32.0", "its speed is not measured"),
        ("0.99.0", "does not know vLLM 0.99.0"),
    ],
)
def test_a_replica_of_vllm_says_what_many_adapters_cost(
    holder: Replica, lead: Client, release: str, words: str
) -> None:
    assert "many adapters" not in text_of(lead.get("/clusters/cpu/")), "the embedded engine has its own kernels"
    Cluster.objects.update(engine="vllm")
    Replica.objects.update(engine_version=release)
    assert words in html.unescape(text_of(lead.get("/clusters/cpu/")))


def test_a_cluster_and_a_share_are_changed(holder: Replica, lead: Client) -> None:
    body = {"max_lora_rank": 64, "max_loras": 6, "engine_key": "sk-1", "reason": "restarted"}
    assert lead.post("/clusters/cpu/change/", body).status_code == 302
    changed = {**body, "engine_key": "", "max_loras": 5, "routing": "prefix_affinity"}
    assert lead.post("/clusters/cpu/change/", changed).status_code == 302
    assert lead.post("/clusters/cpu/change/", {**changed, "routing": ""}).status_code == 302
    cluster = Cluster.objects.get()
    assert (cluster.max_loras, cluster.engine_key, cluster.routing) == (5, "sk-1", "prefix_affinity")
    assert "by the beginning of the prompt" in " ".join(text_of(lead.get("/clusters/cpu/")).split())
    assert "sk-1" not in text_of(lead.get("/clusters/cpu/"))
    share = {"project": "far", "slots": 3, "requests_per_s": "", "tokens_per_min": 600, "reason": "more"}
    assert lead.post("/clusters/cpu/change_grant/", share).status_code == 302
    grant = ClusterGrant.objects.get()
    assert (grant.slots, grant.requests_per_s, grant.tokens_per_min) == (3, None, 600)
    refused = lead.post("/clusters/cpu/change_grant/", {**share, "slots": 5})
    assert (refused.status_code, "grant at most 4" in text_of(refused)) == (422, True)


def test_who_may_only_read_sees_no_form(holder: Replica, alias: Alias, client: Client) -> None:
    client.force_login(member("vera", alias.project, Membership.Role.VIEWER))
    page = text_of(client.get("/clusters/cpu/"))
    assert [form for form in FORMS if form in page] == []
    assert client.post(f"/replicas/{holder.pk}/drain/", {"reason": "x", "confirm": "on"}).status_code == 403
