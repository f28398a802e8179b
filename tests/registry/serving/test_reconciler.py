"""The control loop against replicas that answer in vLLM's words."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

from django.conf import settings as django_settings
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils.timezone import now

from adapterhub.accounts.models import ApiToken, User
from adapterhub.audit.models import AuditEvent
from registry.models import AdapterVersion, Alias, Replica, Rollout, RolloutStatus
from registry.serving.desired_versions import wanted_versions
from registry.serving.reconciler import reconcile
from registry.serving.valkey import valkey
from serving_client.protocol import WANTS
from tests.builders.fleet import OnDisk, names, published
from tests.fakes.engine import FakeEngine, error
from tests.fakes.server import Server


def test_what_an_alias_needs_is_loaded_and_routed(served: Alias, engines: list[tuple[FakeEngine, Server]]) -> None:
    reconcile()
    name = served.version.served_name
    assert names(engines[0]) == names(engines[1]) == {name}
    assert engines[0][0].adapters[name].endswith(served.version.digest)
    table = published()
    assert table.aliases["eu/compliance"].stable == name
    assert set(table.versions[name].replicas) == {server.url for _, server in engines}
    assert AuditEvent.objects.filter(tag="replica:version_loaded").count() == 2


def test_a_second_look_does_nothing(served: Alias, engines: list[tuple[FakeEngine, Server]]) -> None:
    reconcile()
    probes = [len(engine.received) for engine, _ in engines]
    events = AuditEvent.objects.count()
    reconcile()
    assert [len(engine.received) for engine, _ in engines] == probes
    assert AuditEvent.objects.count() == events


def test_a_replica_that_restarts_empty_is_healed(served: Alias, engines: list[tuple[FakeEngine, Server]]) -> None:
    reconcile()
    engines[0][0].adapters.clear()
    reconcile()
    assert names(engines[0]) == {served.version.served_name}


def test_other_weights_under_the_name_are_replaced(served: Alias, engines: list[tuple[FakeEngine, Server]]) -> None:
    name = served.version.served_name
    engines[0][0].adapters[name] = "/somewhere/else"
    reconcile()
    assert engines[0][0].adapters[name].endswith(served.version.digest)


def test_nothing_is_routed_to_a_replica_that_is_down(
    served: Alias, engines: list[tuple[FakeEngine, Server]], alice: User
) -> None:
    served.cluster.add_replica(url="http://127.0.0.1:9", by=alice.as_actor())
    reconcile()
    routed = published().versions[served.version.served_name].replicas
    assert set(routed) == {server.url for _, server in engines}
    assert "does not answer" in Replica.objects.get(url="http://127.0.0.1:9").message


def test_a_rollout_starts_when_every_replica_holds_the_candidate(
    served: Alias, engines: list[tuple[FakeEngine, Server]], candidate: AdapterVersion, alice: User
) -> None:
    rollout = Rollout.create(
        alias=served, candidate=candidate, steps=[{"weight": 50}], reason="try", by=alice.as_actor()
    )
    assert published().aliases["eu/compliance"].rollout is None
    reconcile()
    rollout.refresh_from_db()
    assert rollout.status == RolloutStatus.RUNNING
    route = published().aliases["eu/compliance"].rollout
    assert (route.candidate, route.weight, route.salt) == (candidate.served_name, 50, rollout.salt)


def test_a_refusal_is_remembered_until_the_replica_comes_back(
    served: Alias, engines: list[tuple[FakeEngine, Server]]
) -> None:
    folder = str(served.version.served_folder())
    engines[0][0].folders[folder] = 128
    reconcile()
    replica = Replica.objects.first()
    assert served.version.served_name in replica.refused
    del engines[0][0].folders[folder]
    reconcile()
    assert names(engines[0]) == set()
    replica.refresh_from_db()
    replica.missed("restarted")
    reconcile()
    assert names(engines[0]) == {served.version.served_name}


def test_weights_that_answer_nonsense_are_refused_by_the_probe(
    served: Alias, engines: list[tuple[FakeEngine, Server]]
) -> None:
    engines[0][0].script.append(error(500, "InternalServerError", "not finite"))
    reconcile()
    assert set(published().versions[served.version.served_name].replicas) == {engines[1][1].url}


def test_a_damaged_artifact_is_not_loaded(
    served: Alias, engines: list[tuple[FakeEngine, Server]], make_version: Callable[..., AdapterVersion], alice: User
) -> None:
    reconcile()
    old = served.version.served_name
    damaged = make_version(served.version.adapter, seed=99)
    weights = Path(django_settings.ARTIFACT_STORE) / damaged.digest[:2] / damaged.digest / "adapter_model.safetensors"
    intact = weights.read_bytes()
    weights.write_bytes(intact[:-1] + bytes([intact[-1] ^ 1]))
    try:
        served.move(damaged, expected=served.version, reason="newer", by=alice.as_actor())
        reconcile()
    finally:
        weights.write_bytes(intact)
    assert names(engines[0]) == names(engines[1]) == {old}, "the old version stays where it was"
    assert "were changed" in Replica.objects.first().refused[damaged.served_name]
    events = AuditEvent.objects.filter(tag="replica:load_refused")
    assert events.count() == 2
    assert all("were changed" in event.reason for event in events)
    table = published()
    assert table.versions[damaged.served_name].replicas == ()
    assert len(table.versions[old].replicas) == 2


def test_a_damaged_local_copy_is_made_again_and_loaded(
    served: Alias, engines: list[tuple[FakeEngine, Server]], make_version: Callable[..., AdapterVersion], alice: User
) -> None:
    damaged = make_version(served.version.adapter, seed=98)
    (damaged.served_folder() / "adapter_config.json").write_text("{}")
    served.move(damaged, expected=served.version, reason="newer", by=alice.as_actor())
    reconcile()
    assert damaged.served_name in names(engines[0])
    assert (damaged.served_folder() / "adapter_config.json").read_text() != "{}"


def test_a_cold_version_that_a_router_asks_for_is_loaded(
    served: Alias, engines: list[tuple[FakeEngine, Server]], candidate: AdapterVersion
) -> None:
    reconcile()
    assert candidate.served_name not in names(engines[0])
    with valkey() as client:
        client.xadd(WANTS, {"version": candidate.served_name})
    reconcile()
    assert candidate.served_name in names(engines[0])


def test_what_nothing_wants_is_unloaded_after_the_new_table(
    served: Alias, engines: list[tuple[FakeEngine, Server]], candidate: AdapterVersion
) -> None:
    engines[0][0].adapters[candidate.served_name] = str(candidate.served_folder())
    reconcile()
    assert names(engines[0]) == {served.version.served_name}


def test_the_replaced_version_stays_for_the_rollback_window(
    served: Alias, engines: list[tuple[FakeEngine, Server]], candidate: AdapterVersion, alice: User
) -> None:
    reconcile()
    served.move(candidate, expected=served.version, reason="newer", by=alice.as_actor())
    reconcile()
    assert len(names(engines[0])) == 2


def test_after_the_window_the_replaced_version_is_unloaded(
    served: Alias, engines: list[tuple[FakeEngine, Server]], candidate: AdapterVersion, alice: User, settings: Any
) -> None:
    reconcile()
    served.move(candidate, expected=served.version, reason="newer", by=alice.as_actor())
    settings.ROLLBACK_WINDOW = timedelta(0)
    reconcile()
    assert names(engines[0]) == {candidate.served_name}


def test_the_wanted_versions_take_the_same_queries_for_many_aliases(
    served: Alias, candidate: AdapterVersion, alice: User, django_assert_max_num_queries: Any
) -> None:
    for number in range(20):
        Alias.create(
            project=served.project,
            name=f"name-{number}",
            cluster=served.cluster,
            version=candidate,
            policy={},
            by=alice.as_actor(),
        )
    with django_assert_max_num_queries(8):
        assert set(wanted_versions(served.cluster)) == {served.version.served_name, candidate.served_name}


def test_a_round_takes_the_same_queries_for_many_replicas(
    served: Alias, engines: list[tuple[FakeEngine, Server]], alice: User
) -> None:
    reconcile()
    with CaptureQueriesContext(connection) as of_two:
        reconcile()
    with ExitStack() as more:
        for _ in range(4):
            engine = FakeEngine()
            engine.folders = OnDisk()
            server = more.enter_context(Server(engine.app()))
            served.cluster.add_replica(url=server.url, by=alice.as_actor())
        with CaptureQueriesContext(connection) as with_loads:
            reconcile()
        with CaptureQueriesContext(connection) as of_six:
            reconcile()
    assert [len(replica.loaded) for replica in Replica.objects.all()] == [1] * 6
    assert len(statements(of_six)) == len(statements(of_two))
    # Once before the loads, and once for those that end at about the same time.
    assert len([sql for sql in statements(with_loads) if "jsonb_to_recordset" in sql]) <= 5


def test_more_aliases_take_no_more_statements(
    served: Alias, engines: list[tuple[FakeEngine, Server]], alice: User
) -> None:
    reconcile()
    with CaptureQueriesContext(connection) as of_one:
        reconcile()
    for number in range(5):
        Alias.create(
            project=served.project,
            name=f"alias-{number}",
            cluster=served.cluster,
            version=served.version,
            policy={},
            by=alice.as_actor(),
        )
    with CaptureQueriesContext(connection) as of_six:
        reconcile()
    assert len(statements(of_six)) == len(statements(of_one))


def statements(queries: CaptureQueriesContext) -> list[str]:
    """Return the queries without what begins and ends the transactions of results."""
    borders = ("BEGIN", "COMMIT", "SAVEPOINT", "RELEASE")
    return [query["sql"] for query in queries if not query["sql"].startswith(borders)]


def test_a_token_reaches_the_routers_with_its_commit_and_leaves_them_when_revoked(
    served: Alias, engines: object, django_capture_on_commit_callbacks: Any
) -> None:
    with django_capture_on_commit_callbacks(execute=True):
        token, _ = ApiToken.issue(name="app", project=served.project, scopes=["infer"])
    assert token.pk in published().tokens
    token.revoked_at = now()
    with django_capture_on_commit_callbacks(execute=True):
        token.save(update_fields=["revoked_at"])
    assert token.pk not in published().tokens


def test_tokens_travel_as_hashes_with_their_scopes(served: Alias, engines: object) -> None:
    token, text = ApiToken.issue(name="app", project=served.project, scopes=["infer"])
    # A router refuses it with 403 in place of the 401 of an unknown one.
    other, _ = ApiToken.issue(name="ci", project=served.project, scopes=["read"])
    reconcile()
    table = published()
    assert {name: route.scopes for name, route in table.tokens.items()} == {token.pk: ("infer",), other.pk: ("read",)}
    assert text.split("_", 2)[2] not in table.to_json()
