"""Attacks on a protected alias' traffic: shares, overrides, names and defaults that nobody signed."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from django.db import DatabaseError, connection, transaction
from rest_framework.test import APIClient

from adapterhub.accounts.models import ApiToken, Membership, Project, User
from adapterhub.core.errors import Invalid, NotAllowed
from adapterhub.embedded.valkey import EmbeddedValkey
from registry.models import Adapter, AdapterVersion, Alias, Approval, Cluster, Rollout
from registry.pages.playground import offered
from registry.serving.reconciler import RECONCILER
from registry.serving.routing_table import routing_table
from serving_client.protocol import RoutingTable, TokenRoute
from serving_client.router.errors import Refusal
from serving_client.router.resolve import resolve
from tests.builders import member
from tests.builders.rollouts import signed

INFER = TokenRoute("hash", "eu", ("infer",))
OPERATE = TokenRoute("hash", "eu", ("infer", "operate"))


@pytest.fixture
def guarded(alias: Alias, alice: User) -> Alias:
    alias.set_policy({"quorum": 1}, by=alice.as_actor())
    return alias


@pytest.fixture
def api(guarded: Alias, project: Project, alice: User) -> APIClient:
    """A token that may operate, and nothing more."""
    text = ApiToken.issue(name="bot", project=project, scopes=["read", "operate", "infer"], created_by=alice)[1]
    return APIClient(headers={"Authorization": f"Bearer {text}"})


def opened(alias: Alias, candidate: AdapterVersion, user: User, *steps: dict[str, Any], **plan: Any) -> Rollout:
    return Rollout.create(
        alias=alias, candidate=candidate, steps=[*steps] or [{"weight": 50}], reason="try", by=user.as_actor(), **plan
    )


def version_for(name: str, *, token: TokenRoute = INFER, table: RoutingTable | None = None, **headers: str) -> str:
    """Return the version that the router chooses for a request."""
    return resolve(table or routing_table(), token, headers, {"model": name, "user": "somebody"}).version


def execute(statement: str, *values: Any) -> None:
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(statement, values)


@pytest.mark.threat("B5")
def test_a_rollout_at_100_percent_gets_no_traffic(api: APIClient, guarded: Alias, candidate: AdapterVersion) -> None:
    """The attack: scope operate opened a rollout at weight 100, and all traffic went to an unsigned candidate."""
    body = {"alias": guarded.name, "candidate": candidate.served_name, "steps": [{"weight": 100}], "reason": "all"}
    rollout = api.post("/api/v1/rollouts/", body).json()
    assert rollout["waits_for_signature"] is True
    with pytest.raises(NotAllowed, match="needs 1 approval"):
        Rollout.objects.get().started(by=RECONCILER)
    assert version_for(guarded.name) == guarded.version.served_name
    with pytest.raises(Refusal, match="not approved"):
        version_for(candidate.served_name)


@pytest.mark.threat("B5")
@pytest.mark.parametrize(
    ("steps", "plan"),
    [
        ([{"weight": 1}], {}),
        ([{"weight": 0, "shadow": 10}], {}),
        ([{"weight": 0}], {"targeting": {"allow": ["somebody"]}}),
    ],
)
def test_served_mirrored_and_pinned_requests_are_traffic(
    guarded: Alias, candidate: AdapterVersion, alice: User, steps: list[dict[str, Any]], plan: dict[str, Any]
) -> None:
    rollout = opened(guarded, candidate, alice, *steps, **plan)
    with pytest.raises(NotAllowed, match="protected"):
        rollout.started(by=RECONCILER)
    with pytest.raises(DatabaseError, match="share that was signed"):
        execute("UPDATE registry_rollout SET status = 'running' WHERE id = %s", rollout.pk)
    signed(rollout).started(by=RECONCILER)
    assert routing_table().aliases[f"eu/{guarded.name}"].rollout


@pytest.mark.threat("B5")
def test_a_rejected_candidate_gets_nothing(guarded: Alias, candidate: AdapterVersion, alice: User, dana: User) -> None:
    """The attack went on after the approver had rejected it; a canary does not help either."""
    with_canary(guarded, 10, alice, dana)
    rollout = opened(guarded, candidate, alice, {"weight": 10})
    rollout.started(by=RECONCILER)
    assert routing_table().aliases[f"eu/{guarded.name}"].rollout.weight == 10
    rollout.approvals.get().reject(reason="worse", by=dana.as_actor())
    assert routing_table().aliases[f"eu/{guarded.name}"].rollout is None
    rollout.request_approval(reason="again", by=alice.as_actor())
    assert routing_table().aliases[f"eu/{guarded.name}"].rollout is None
    rollout.rollback(reason="over", by=alice.as_actor())
    with pytest.raises(NotAllowed, match="0 % are signed"):
        opened(guarded, candidate, alice, {"weight": 1}).started(by=RECONCILER)


@pytest.fixture
def dana(project: Project) -> User:
    return member("dana", project, Membership.Role.APPROVER)


def with_canary(alias: Alias, percent: float, author: User, signer: User) -> None:
    policy = {"quorum": 1, "canary": percent}
    alias.request_policy(policy, reason="small shares", by=author.as_actor()).approve(
        reason="agreed", by=signer.as_actor()
    )
    alias.set_policy(policy, by=author.as_actor())


@pytest.mark.threat("B5")
def test_a_canary_counts_when_it_was_signed(
    guarded: Alias, candidate: AdapterVersion, alice: User, dana: User, cluster: Cluster, version: AdapterVersion
) -> None:
    with pytest.raises(Invalid, match="only when signed"):
        Alias.create(
            project=guarded.project,
            name="new",
            cluster=cluster,
            version=version,
            policy={"quorum": 1, "canary": 100},
            by=alice.as_actor(),
        )
    with pytest.raises(DatabaseError):
        execute('UPDATE registry_alias SET policy = \'{"quorum": 1, "canary": 100}\' WHERE id = %s', guarded.pk)
    with_canary(guarded, 5, alice, dana)
    rollout = opened(guarded, candidate, alice, {"weight": 5}, {"weight": 20})
    rollout.started(by=RECONCILER)
    table = routing_table()
    assert (
        table.aliases[f"eu/{guarded.name}"].rollout.weight,
        table.aliases[f"eu/{guarded.name}"].rollout.is_signed,
    ) == (5, False)
    with pytest.raises(Refusal, match="not signed"):
        version_for(guarded.name, token=OPERATE, table=table, **{"x-rollout-override": "candidate"})
    for change in (rollout.advance, lambda **fields: rollout.set_weight(6, **fields)):
        with pytest.raises(NotAllowed, match="5 % are signed"):
            change(reason="more", by=alice.as_actor())
    signed(rollout, "dana")
    rollout.advance(reason="signed", by=alice.as_actor())
    overridden = version_for(guarded.name, token=OPERATE, **{"x-rollout-override": "candidate"})
    assert overridden == candidate.served_name


@pytest.mark.threat("B5")
def test_a_share_beyond_the_signed_plan_is_refused(guarded: Alias, candidate: AdapterVersion, alice: User) -> None:
    rollout = signed(opened(guarded, candidate, alice, {"weight": 5}, {"weight": 20}))
    rollout.started(by=RECONCILER)
    rollout.set_weight(20, reason="as signed", by=alice.as_actor())
    with pytest.raises(NotAllowed, match="only 20 % are signed"):
        rollout.set_weight(21, reason="more", by=alice.as_actor())
    statements = [
        "UPDATE registry_rollout SET weight = 21 WHERE id = %s",
        "UPDATE registry_rollout SET steps = '[{\"weight\": 90}]', step = 0, weight = 90 WHERE id = %s",
        'UPDATE registry_rollout SET targeting = \'{"pinned": {"x": "candidate"}}\' WHERE id = %s',
        "UPDATE registry_rollout SET candidate_id = stable_id, stable_id = candidate_id WHERE id = %s",
    ]
    for statement in statements:
        with pytest.raises(DatabaseError):
            execute(statement, rollout.pk)


@pytest.mark.threat("B9")
def test_raw_sql_neither_renames_nor_replaces_a_protected_alias(
    guarded: Alias, candidate: AdapterVersion, version: AdapterVersion, alice: User
) -> None:
    """The attack: rename the alias, and insert another one under its name."""
    columns = "project_id, name, cluster_id, version_id, policy, generation, created_at"
    insert = f"INSERT INTO registry_alias ({columns}) SELECT {columns.replace('version_id', '%s')} FROM registry_alias"  # noqa: S608
    for statement, *values in (
        ("UPDATE registry_alias SET name = 'former' WHERE id = %s", guarded.pk),
        ("DELETE FROM registry_alias WHERE id = %s", guarded.pk),
        ("TRUNCATE registry_alias CASCADE",),
        (insert, candidate.pk),
        ("UPDATE registry_alias SET version_id = %s", candidate.pk),
    ):
        with pytest.raises(DatabaseError):
            execute(statement, *values)
    assert version_for(guarded.name) == version.served_name


@pytest.mark.threat("B6")
def test_a_new_alias_does_not_take_the_adapters_name(
    api: APIClient, guarded: Alias, adapter: Adapter, candidate: AdapterVersion, alice: User
) -> None:
    """The attack: an unprotected alias, last in the alphabet, moved callers who name the adapter."""
    guarded.set_default(True, by=alice.as_actor())
    assert version_for("dora") == guarded.version.served_name
    body = {"project": "eu", "name": "zz", "cluster": "cpu", "version": candidate.served_name, "policy": {}}
    assert api.post("/api/v1/aliases/", body).status_code == 201
    assert version_for("dora") == guarded.version.served_name
    taken = api.patch("/api/v1/aliases/zz/", {"default": True})
    assert (taken.status_code, taken.json()["code"]) == (409, "default_protected")
    assert api.patch(f"/api/v1/aliases/{guarded.name}/", {"default": False}).status_code == 409
    with pytest.raises(DatabaseError):
        execute("UPDATE registry_alias SET default_of_id = NULL WHERE id = %s", guarded.pk)
    assert version_for("dora") == guarded.version.served_name


@pytest.mark.threat("B6")
def test_an_adapter_without_a_default_alias_says_how_to_set_one(api: APIClient, alias: Alias, alice: User) -> None:
    with pytest.raises(Refusal, match=r"no default alias.*PATCH /api/v1/aliases/"):
        version_for("dora")
    answer = api.patch(f"/api/v1/aliases/{alias.name}/", {"default": True, "reason": "applications send dora"})
    assert answer.json()["default_of"] == "dora", answer.content
    assert version_for("dora") == alias.version.served_name
    with pytest.raises(Refusal, match="does not exist"):
        version_for("dora", token=dataclasses.replace(INFER, project="other"))


@pytest.mark.threat("B10")
def test_a_version_that_is_not_approved_is_not_answered(
    valkey: EmbeddedValkey, api: APIClient, guarded: Alias, candidate: AdapterVersion, alice: User, project: Project
) -> None:
    with pytest.raises(Refusal, match="named_versions"):
        version_for(candidate.served_name)
    assert version_for(guarded.version.served_name) == guarded.version.served_name
    assert offered(Project.objects.all()) == [guarded.name, guarded.version.served_name]
    blind = {"adapter": "dora", "versions": [1, 2], "prompts": ["the bank"]}
    refused = api.post("/api/v1/blind-tests/", blind)
    assert (refused.status_code, refused.json()["code"]) == (422, "version_not_approved")
    change = {"named_versions": "any", "reason": "tests need it"}
    assert api.patch(f"/api/v1/projects/{project.slug}/", change).json()["code"] == "scope_missing"
    person = APIClient()
    person.force_login(alice)
    answer = person.patch(f"/api/v1/projects/{project.slug}/", {**change, "password": "alice-long-password"})
    assert answer.status_code == 200, answer.content
    assert version_for(candidate.served_name) == candidate.served_name
    assert candidate.served_name in offered(Project.objects.all())


@pytest.mark.threat("B10")
def test_a_signature_opens_the_version(guarded: Alias, candidate: AdapterVersion, alice: User) -> None:
    signed(opened(guarded, candidate, alice))
    assert version_for(candidate.served_name) == candidate.served_name
    table = routing_table()
    assert RoutingTable.from_json(table.to_json()) == table


@pytest.mark.threat("D25")
def test_a_blind_test_of_nobody_is_refused_before_the_prompt_is_sent(
    alias: Alias, candidate: AdapterVersion, project: Project
) -> None:
    """The attack: a token without a person got 500 after every version had answered. Nothing listens here."""
    text = ApiToken.issue(name="shell", project=project, scopes=["read", "infer"])[1]
    api = APIClient(headers={"Authorization": f"Bearer {text}"})
    answer = api.post("/api/v1/blind-tests/", {"adapter": "dora", "versions": [1, 2], "prompts": ["the bank"]})
    assert (answer.status_code, answer.json()["code"]) == (422, "person_missing")
    assert not Approval.objects.exists()
