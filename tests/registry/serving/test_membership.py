"""Membership of discovered replicas: they join, are drained and leave; a source that is silent changes nothing."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.utils.timezone import now

from adapterhub.accounts.models import User
from adapterhub.audit.models import AuditEvent
from adapterhub.core.errors import Invalid
from registry.models import Alias, Cluster, Replica
from registry.serving.membership import LAST_ANSWERS, update_members
from registry.serving.open_alarms import open_alarms

ONE, TWO, HAND = "http://10.0.0.1:8000", "http://10.0.0.2:8000", "http://10.0.0.9:8000"


@pytest.fixture(autouse=True)
def networks(settings: object) -> None:
    settings.ENGINE_HOSTS = ["10.0.0.0/8"]  # type: ignore[attr-defined]


@pytest.fixture
def discovered(cluster: Cluster) -> Cluster:
    """A cluster whose source named two replicas, which answer."""
    assert update_members(cluster, {ONE: False, TWO: False}) == ""
    cluster.replicas.update(is_healthy=True, seen_at=now())
    return cluster


def state(cluster: Cluster) -> dict[str, bool]:
    """Map the address of each replica to True if it is drained."""
    return {replica.url: replica.draining_since is not None for replica in cluster.replicas.all()}


def tags() -> list[str]:
    rows = AuditEvent.objects.filter(actor_name="system:discovery").order_by("pk")
    return [str(tag).partition(":")[2] for tag in rows.values_list("tag", flat=True)]


def test_who_is_found_is_added_once_and_by_discovery(discovered: Cluster) -> None:
    update_members(discovered, {ONE: False, TWO: False})
    assert state(discovered) == {ONE: False, TWO: False}
    assert tags() == ["added", "added"]
    assert set(discovered.replicas.values_list("is_discovered", flat=True)) == {True}


def test_who_leaves_is_drained_at_once_and_deleted_when_it_is_gone(discovered: Cluster) -> None:
    update_members(discovered, {ONE: True, TWO: False})
    assert state(discovered) == {ONE: True, TWO: False}
    discovered.replicas.update(is_healthy=False)
    update_members(discovered, {ONE: True, TWO: False})
    assert ONE in state(discovered), "it is still listed"
    update_members(discovered, {TWO: False})
    assert state(discovered) == {TWO: False}
    assert tags() == ["added", "added", "drained", "deleted"]


def test_who_vanishes_but_answers_is_drained_and_has_time_for_its_last_answers(discovered: Cluster) -> None:
    update_members(discovered, {TWO: False})
    update_members(discovered, {TWO: False})
    assert state(discovered) == {ONE: True, TWO: False}
    Replica.objects.filter(url=ONE).update(gone_since=now() - LAST_ANSWERS - timedelta(seconds=1))
    update_members(discovered, {TWO: False})
    assert state(discovered) == {TWO: False}


def test_who_is_named_again_serves_again(discovered: Cluster) -> None:
    update_members(discovered, {TWO: False})
    update_members(discovered, {ONE: False, TWO: False})
    assert state(discovered) == {ONE: False, TWO: False}
    assert Replica.objects.get(url=ONE).gone_since is None


def test_what_people_did_stays(discovered: Cluster, alice: User) -> None:
    discovered.add_replica(url=HAND, by=alice.as_actor())
    discovered.replicas.get(url=TWO).drain(reason="a broken fan", by=alice.as_actor())
    update_members(discovered, {ONE: False, TWO: False})
    assert state(discovered) == {ONE: False, TWO: True, HAND: False}
    update_members(discovered, {ONE: False, TWO: False, HAND: False})
    assert not discovered.replicas.get(url=HAND).is_discovered


def test_the_only_holder_of_a_live_version_goes_and_the_trail_names_what_it_cut_off(alias: Alias) -> None:
    update_members(alias.cluster, {ONE: False})
    name = alias.version.served_name
    alias.cluster.replicas.update(is_healthy=True, loaded={name: "/srv/1"})
    update_members(alias.cluster, {ONE: True})
    event = AuditEvent.objects.get(tag="replica:drained")
    assert event.after == {"cuts_off": [name]}
    assert event.reason == "It is being terminated."


def test_an_address_that_is_not_allowed_or_taken_is_said(discovered: Cluster) -> None:
    message = update_members(discovered, {ONE: False, TWO: False, "http://192.0.2.1:8000": False})
    assert message.startswith("http://192.0.2.1:8000: ")
    assert set(state(discovered)) == {ONE, TWO}


def test_an_empty_answer_of_dns_is_doubted_while_a_replica_answers(discovered: Cluster) -> None:
    assert "nothing was changed" in update_members(discovered, {}, may_be_empty=False)
    assert state(discovered) == {ONE: False, TWO: False}
    discovered.replicas.update(is_healthy=False)
    update_members(discovered, {}, may_be_empty=False)
    update_members(discovered, {}, may_be_empty=False)
    assert state(discovered) == {}


def test_a_source_is_read_when_it_is_set(cluster: Cluster, alice: User) -> None:
    with pytest.raises(Invalid, match="names no source of replicas") as refused:
        cluster.change(discovery="vllm:8000", reason="typed", by=alice.as_actor())
    assert (refused.value.field, refused.value.code) == ("discovery", "bad_discovery")
    cluster.change(discovery="dns://vllm.test:8000", reason="discovered from now on", by=alice.as_actor())
    assert cluster.discovery == "dns://vllm.test:8000"


def test_a_silent_source_is_an_alarm(discovered: Cluster) -> None:
    discovered.discovery, discovered.discovered_at = "dns://vllm.test:8000", now()
    discovered.save()
    rows = discovered.replicas.select_related("cluster")
    assert open_alarms(rows) == []
    Cluster.objects.update(discovered_at=now() - timedelta(minutes=3), discovery_message="DNS does not tell A.")
    [alarm] = open_alarms(rows.all())
    assert (alarm.kind, "DNS does not tell A." in alarm.text) == ("discovery_stalled", True)
