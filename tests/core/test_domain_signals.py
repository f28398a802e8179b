"""Signals of models: sent when the transaction is committed, never before, and no failure of a receiver is lost."""

from __future__ import annotations

from typing import Any

import pytest
from django.db import transaction
from django.dispatch import Signal

from adapterhub.accounts.models import User
from adapterhub.core.domain_signals import send_on_commit
from adapterhub.embedded.valkey import EmbeddedValkey
from registry.domain_signals import cluster_changed
from registry.models import Cluster
from registry.serving.valkey import valkey as connect
from serving_client.protocol import ROUTING_TABLE

pytestmark = pytest.mark.django_db


@pytest.fixture
def signal() -> Signal:
    return Signal()


@pytest.fixture
def received(signal: Signal) -> list[dict[str, Any]]:
    """The facts of each signal that arrived."""
    facts: list[dict[str, Any]] = []

    def collect(sender: object, signal: Signal, **about: Any) -> None:
        facts.append(about)

    signal.connect(collect, weak=False)
    return facts


def test_it_is_sent_when_the_transaction_is_committed(
    signal: Signal, received: list[dict[str, Any]], django_capture_on_commit_callbacks: Any
) -> None:
    with django_capture_on_commit_callbacks(execute=True):
        with transaction.atomic():
            send_on_commit(signal, alias=7)
        assert received == []
    assert received == [{"alias": 7}]


def test_a_rollback_sends_none(
    signal: Signal, received: list[dict[str, Any]], django_capture_on_commit_callbacks: Any
) -> None:
    with django_capture_on_commit_callbacks(execute=True), transaction.atomic():
        send_on_commit(signal, alias=7)
        transaction.set_rollback(True)
    assert received == []


def test_a_failure_of_a_receiver_reaches_the_caller(signal: Signal, django_capture_on_commit_callbacks: Any) -> None:
    def fail(**_: Any) -> None:
        raise ZeroDivisionError

    signal.connect(fail, weak=False)
    with django_capture_on_commit_callbacks() as callbacks, transaction.atomic():
        send_on_commit(signal)
    with pytest.raises(ZeroDivisionError):
        callbacks[0]()


def test_routers_hear_of_a_new_replica_after_its_commit(
    cluster: Cluster, alice: User, valkey: EmbeddedValkey, django_capture_on_commit_callbacks: Any
) -> None:
    assert cluster_changed.has_listeners()
    with django_capture_on_commit_callbacks(execute=True), transaction.atomic():
        cluster.add_replica(url="http://127.0.0.1:9", by=alice.as_actor())
        assert not connect().exists(ROUTING_TABLE)
    assert connect().exists(ROUTING_TABLE)
