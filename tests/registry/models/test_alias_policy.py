"""What an alias' policy may say, and how its cache rule reaches the routers."""

from __future__ import annotations

from typing import Any

import pytest
from django.test import Client

from adapterhub.accounts.models import User
from adapterhub.core.errors import Invalid
from registry.models import Alias
from registry.models.alias_policy import check_policy
from registry.serving.routing_table import routing_table
from serving_client import CacheRule, RateLimit, RoutingTable

RULE = {"ttl_s": 60, "max_bytes": 1000}
SCORE = {"task": "articles", "metric": "acc", "at_least": 0.5}


@pytest.mark.parametrize("policy", [{}, {"quorum": 0}, {"quorum": 10, "cache": RULE}, {"evaluations": [SCORE]}])
def test_what_a_policy_may_say(policy: dict[str, Any]) -> None:
    check_policy(policy)


@pytest.mark.parametrize(
    ("policy", "named"),
    [
        ({"quorom": 1}, "keys quorum, canary, cache, evaluations and replicas"),
        ({"evaluations": SCORE}, "evaluations is a list"),
        ({"evaluations": [{**SCORE, "at_most": 1}]}, "evaluations has"),
        ({"evaluations": [{"task": "articles", "metric": "acc"}]}, "evaluations has"),
        ({"evaluations": [{**SCORE, "at_least": "0.5"}]}, "evaluations has"),
        ({"evaluations": [{**SCORE, "task": ""}]}, "evaluations has"),
        ({"quorum": True}, "quorum"),
        ({"quorum": 11}, "quorum"),
        ({"canary": 5}, "protected alias"),
        ({"quorum": 1, "canary": 101}, "canary is"),
        ({"cache": None}, "cache is"),
        ({"cache": {"ttl_s": 60}}, "cache is"),
        ({"cache": {**RULE, "ttl_s": 0}}, "cache.ttl_s"),
        ({"cache": {**RULE, "max_bytes": 2**40}}, "cache.max_bytes"),
        ({"cache": {**RULE, "ttl_s": "60"}}, "cache.ttl_s"),
    ],
)
def test_a_policy_that_is_refused_says_why(policy: dict[str, Any], named: str) -> None:
    with pytest.raises(Invalid, match=named):
        check_policy(policy)


def test_the_cache_rule_reaches_the_routers(fresh_database: str, alias: Alias, alice: User) -> None:
    assert routing_table().aliases[f"eu/{alias.name}"].cache is None
    alias.set_policy({"cache": RULE}, by=alice.as_actor())
    assert routing_table().aliases[f"eu/{alias.name}"].cache == CacheRule(**RULE)


def test_the_rate_limit_reaches_the_routers(fresh_database: str, alias: Alias, settings: Any) -> None:
    assert routing_table().limits == {}
    settings.PROJECT_REQUESTS_PER_S = 50
    table = routing_table()
    assert table.limits[alias.project.slug] == RateLimit(50, 100)
    assert RoutingTable.from_json(table.to_json()) == table


@pytest.mark.parametrize("at", ["now", "2026-11-23T12:00:00", "2026-13-45T00:00:00Z", "0001-01-01T00:00:00+23:59"])
def test_a_time_that_is_none_is_named(alias: Alias, ci: str, at: str) -> None:
    answer = Client(headers={"Authorization": f"Bearer {ci}"}).get(f"/api/v1/aliases/{alias.name}/history/", {"at": at})
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "at")
