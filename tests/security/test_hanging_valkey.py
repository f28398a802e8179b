"""A Valkey that hangs: decisions are committed and told as unpublished, and no router serves on for ever."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.test import Client

from adapterhub.accounts.models import ApiToken, User
from registry.models import AdapterVersion, Alias
from registry.serving.routing_table import publish, valkey_for_publication
from serving_client import RoutingTable
from serving_client.protocol import ROUTING_TABLE
from tests.builders.rest import client
from tests.fakes.routing import make_table
from tests.fakes.stage import announce, running_engine, running_router, running_valkey
from tests.fakes.valkey import Valkey
from tests.waiting import wait_until

DAY_S = 24 * 3600


@pytest.fixture
def hung(settings: Any) -> Iterator[Valkey]:
    """A Valkey that hangs from the start of the test; the workers' broker is another one."""
    with running_valkey() as valkey:
        settings.REDIS_URL = valkey.url
        valkey.hang()
        try:
            yield valkey
        finally:
            valkey.wake()


@pytest.mark.threat("D32")
@pytest.mark.slow
def test_a_move_and_a_revocation_are_committed_and_said_to_be_unpublished(
    fresh_database: str, ci: str, alias: Alias, candidate: AdapterVersion, alice: User, hung: Valkey
) -> None:
    api, began = client(ci), time.monotonic()
    body = {"version": candidate.served_name, "expected_version": alias.version.served_name, "reason": "it is worse"}
    moved = api.post(f"/api/v1/aliases/{alias.name}/move/", body)
    assert (moved.status_code, moved.json()["published"]) == (202, False)
    assert moved.json()["version"] == candidate.served_name
    alias.refresh_from_db()
    assert alias.version == candidate

    lost = ApiToken.issue(name="lost", project=alias.project, scopes=["infer"], created_by=alice)[0]
    revoked = api.post(f"/api/v1/tokens/{lost.pk}/revoke/", {"reason": "stolen"})
    assert (revoked.status_code, revoked.json()["published"]) == (202, False)
    assert time.monotonic() - began < 12
    lost.refresh_from_db()
    assert lost.revoked_at

    hung.wake()
    publish()
    with valkey_for_publication() as valkey:
        table = RoutingTable.from_json(valkey.get(ROUTING_TABLE))
    assert table.aliases[f"eu/{alias.name}"].stable == candidate.served_name
    assert lost.pk not in table.tokens
    back = {"version": body["expected_version"], "expected_version": candidate.served_name, "reason": "back"}
    answer = api.post(f"/api/v1/aliases/{alias.name}/move/", back)
    assert answer.status_code == 200
    assert "published" not in answer.json()


@pytest.mark.threat("D32")
def test_a_page_says_it_too(
    fresh_database: str, alias: Alias, candidate: AdapterVersion, alice: User, hung: Valkey
) -> None:
    page = Client()
    page.force_login(alice)
    form = {"version": candidate.pk, "expected": alias.version.pk, "reason": "it is worse"}
    answer = page.post(f"/aliases/{alias.name}/move/", form, follow=True)
    assert "The routers will follow it as soon as Valkey answers." in answer.content.decode()


@pytest.mark.threat("D32")
def test_routers_serve_on_and_tell_the_age_of_their_table(tmp_path: Path) -> None:
    with running_valkey() as valkey, running_engine() as engine, running_router(valkey, tmp_path) as router:
        router.publish(make_table(engine.url, published_at=time.time() - DAY_S + 60))
        valkey.hang()
        try:
            assert router.complete().status_code == 200
            age = router.http.get("/metrics").text.partition("\nadapterhub_table_age_seconds ")[2]
            assert float(age.split()[0]) == pytest.approx(DAY_S - 60, abs=30)
        finally:
            valkey.wake()


@pytest.mark.threat("D32")
def test_a_table_that_is_too_old_is_served_from_no_more(tmp_path: Path) -> None:
    with running_valkey() as valkey, running_engine() as engine, running_router(valkey, tmp_path) as router:
        announce(valkey, make_table(engine.url, published_at=time.time() - DAY_S - 1))
        wait_until(lambda: router.complete().json()["error"]["code"] == "stale_table", what="the table")
        answer = router.complete()
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
        assert router.http.get("/readyz").status_code == 503
        assert router.http.get("/healthz").status_code == 200
        assert engine.fake.received == []
        router.publish(make_table(engine.url, generation=2))
        assert router.complete().status_code == 200


@pytest.mark.threat("D32")
def test_the_age_is_a_setting_and_outlives_a_restart(tmp_path: Path) -> None:
    with running_valkey() as valkey, running_engine() as engine:
        with running_router(valkey, tmp_path) as router:
            router.publish(make_table(engine.url, published_at=time.time() - 100))
        valkey.client.flushall()
        with running_router(valkey, tmp_path, table_max_age_s=99) as router:
            assert router.complete().json()["error"]["code"] == "stale_table"
