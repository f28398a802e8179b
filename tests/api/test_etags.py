"""ETag and If-Match, filters and sparse fields: what a caller that read before it writes can rely on."""

from __future__ import annotations

import json
from typing import Any

import pytest
from django.test import Client

from adapterhub.accounts.models import User
from adapterhub.core.references import REFERENCE
from registry.models import Adapter, AdapterVersion, Alias, Rollout
from tests.builders.walk import ROUTES
from training.models import RankAnalysis, TrainingRun

API = "/api/v1"


@pytest.fixture
def rest(ci: str) -> Client:
    return Client(headers={"Authorization": f"Bearer {ci}"})


def send(rest: Client, method: str, path: str, tag: str, **body: Any) -> Any:
    return rest.generic(method, f"{API}/{path}", json.dumps(body), "application/json", headers={"If-Match": tag})


def test_a_change_for_a_past_state_is_refused(
    rest: Client, alias: Alias, adapter: Adapter, candidate: AdapterVersion, alice: User
) -> None:
    tag = rest.get(f"{API}/adapters/dora/")["ETag"]
    assert send(rest, "PATCH", "adapters/dora/", tag, tags=["eu"]).status_code == 200
    late = send(rest, "PATCH", "adapters/dora/", tag, tags=["us"])
    assert (late.status_code, late.json()["code"]) == (412, "precondition_failed")
    adapter.refresh_from_db()
    assert adapter.tags == ["eu"]

    tag = rest.get(f"{API}/aliases/compliance/")["ETag"]
    changed = send(rest, "PATCH", "aliases/compliance/", tag, policy={"cache": {"ttl_s": 5, "max_bytes": 5}})
    assert (changed.status_code, changed["ETag"] == tag) == (200, False)
    move = {"version": candidate.served_name, "expected_version": alias.version.served_name, "reason": "CI"}
    assert send(rest, "POST", "aliases/compliance/move/", tag, **move).status_code == 412
    assert send(rest, "PATCH", "aliases/compliance/", tag, policy={}).status_code == 412

    rollout = Rollout.create(alias=alias, candidate=candidate, steps=[{"weight": 5}], reason="r", by=alice.as_actor())
    Rollout.objects.update(status="running")
    tag = rest.get(f"{API}/rollouts/{rollout.pk}/")["ETag"]
    paused = send(rest, "POST", f"rollouts/{rollout.pk}/pause/", tag, reason="look")
    assert (paused.status_code, paused["ETag"] == tag) == (200, False)
    for verb, body in {"resume": {}, "promote": {}, "set-weight": {"weight": 9}, "rollback": {}}.items():
        assert send(rest, "POST", f"rollouts/{rollout.pk}/{verb}/", tag, reason="r", **body).status_code == 412
    assert send(rest, "POST", f"rollouts/{rollout.pk}/resume/", "what", reason="r").status_code == 422
    assert send(rest, "POST", f"rollouts/{rollout.pk}/rollback/", paused["ETag"], reason="r").status_code == 200


def test_a_draft_that_somebody_changed_is_not_changed_started_or_discarded(
    rest: Client, alias: Alias, candidate: AdapterVersion, alice: User
) -> None:
    plan = {"steps": [{"weight": 5}], "reason": "r", "by": alice.as_actor(), "draft": True}
    path = f"rollouts/{Rollout.create(alias=alias, candidate=candidate, **plan).pk}/"
    old_tag = rest.get(f"{API}/{path}")["ETag"]
    changed = send(rest, "PATCH", path, old_tag, steps=[{"weight": 7}], reason="r")
    assert (changed.status_code, changed["ETag"] == old_tag) == (200, False)
    for method, verb, body in (
        ("PATCH", "", {"steps": [{"weight": 9}]}),
        ("POST", "start/", {}),
        ("POST", "discard/", {}),
    ):
        late = send(rest, method, path + verb, old_tag, reason="r", **body)
        assert (late.status_code, late.json()["code"]) == (412, "precondition_failed"), verb
    assert Rollout.objects.get().steps[0]["weight"] == 7
    started = send(rest, "POST", path + "start/", changed["ETag"], reason="r")
    assert (started.status_code, started.json()["status"]) == (200, "loading")


def test_what_is_known_is_not_sent_again(rest: Client, alias: Alias) -> None:
    tag = rest.get(f"{API}/aliases/compliance/")["ETag"]
    again = rest.get(f"{API}/aliases/compliance/", headers={"If-None-Match": f'"x", {tag}'})
    assert (again.status_code, again.content, again["ETag"]) == (304, b"", tag)
    assert rest.get(f"{API}/aliases/compliance/", headers={"If-None-Match": '"x"'}).status_code == 200


def test_every_list_is_narrowed(rest: Client, world: dict[str, Any]) -> None:
    for name, (path, pattern) in ROUTES.items():
        if not name.startswith("api:") or getattr(pattern.callback, "actions", {}).get("get") != "list":
            continue
        # A report has no rows to be narrowed; what it is asked with has its own tests.
        if name == "api:usage-list":
            continue
        view = pattern.callback.cls
        assert view.filters, f"{name} has no filters"
        base = "/" + path.replace("^", "").replace("$", "").replace(f"(?P<slug>{REFERENCE})", "dora")
        whole = rest.get(base)
        assert whole.status_code == 200, (base, whole.content)
        unknown = rest.get(f"{base}?colour=red")
        assert (unknown.status_code, unknown.json()["code"]) == (422, "unknown_filter"), base
        for word in view.filters:
            assert rest.get(base, {word: "\0"}).status_code == 422, (base, word)


def test_filters_find_what_they_name(rest: Client, world: dict[str, Any]) -> None:
    def matches(path: str, **words: Any) -> int:
        answer = rest.get(f"{API}/{path}/", words)
        assert answer.status_code == 200, answer.content
        return len(answer.json()["results"])

    run = TrainingRun.objects.get()
    assert matches("training-runs", adapter="dora", dataset=run.dataset_id, status="queued") == 1
    assert matches("training-runs", status="failed") == matches("training-runs", adapter="none") == 0
    assert matches("training-runs", status=["failed", "queued"]) == 1
    assert matches("training-runs", created_after=run.created_at.isoformat()) == 1
    assert matches("training-runs", created_before=run.created_at.isoformat()) == 0
    assert matches("rollouts", alias="compliance") == 1
    assert matches("rollouts", alias="another") == 0
    for words in ({"status": "odd"}, {"dataset": "one"}, {"rank_analysis": "x"}, {"created_after": "yesterday"}):
        refused = rest.get(f"{API}/training-runs/", words)
        assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, next(iter(words)))


def test_only_the_named_fields_come(rest: Client, world: dict[str, Any]) -> None:
    row = rest.get(f"{API}/training-runs/?fields=id,status").json()["results"][0]
    assert set(row) == {"id", "status"}
    RankAnalysis.objects.update(plan={"modules": [], "verdict": "flat", "budget": {"kind": "uniform_rank", "value": 8}})
    one = rest.get(f"{API}/rank-analyses/{RankAnalysis.objects.get().pk}/?fields=id,verdict").json()
    assert one == {"id": str(RankAnalysis.objects.get().pk), "verdict": "flat"}
    refused = rest.get(f"{API}/training-runs/?fields=id,colour")
    assert (refused.status_code, refused.json()["code"]) == (422, "unknown_field")
