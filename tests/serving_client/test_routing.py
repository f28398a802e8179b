"""Arms and the table: pure."""

from __future__ import annotations

import hashlib
import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving_client import RoutingTable, arm_of
from serving_client.arm_assignment import bucket_of
from tests.fakes.routing import make_table

weights = st.floats(0, 50)


@given(st.text(), st.text(), weights, weights)
def test_nobody_leaves_an_arm_while_the_ramp_grows(salt: str, unit: str, one: float, other: float) -> None:
    before, after = arm_of(salt, unit, min(one, other)), arm_of(salt, unit, max(one, other))
    assert before in ("stable", after)


@pytest.mark.parametrize("weight", [0, 1, 12.5, 50, 80, 100])
def test_arms_have_their_share(weight: float) -> None:
    arms = Counter(arm_of("salt", f"user-{number}", weight) for number in range(100_000))
    assert arms["candidate"] / 1000 == pytest.approx(weight, abs=0.5)
    assert arms["control"] / 1000 == pytest.approx(min(weight, 100 - weight), abs=0.5)


def test_two_rollouts_split_people_independently() -> None:
    units = [f"user-{number}" for number in range(20_000)]
    first, second = ({unit for unit in units if arm_of(salt, unit, 50) == "candidate"} for salt in ("a", "b"))
    assert len(first & second) / 200 == pytest.approx(25, abs=1)


def test_the_bucket_is_the_one_of_the_design() -> None:
    digest = hashlib.sha256("salt|unit é".encode()).hexdigest()
    assert bucket_of("salt", "unit é") == int(digest[:16], 16) / 2**64


@pytest.mark.parametrize("weight", [None, 25.0])
def test_a_table_survives_its_journey(weight: float | None) -> None:
    table = make_table("http://127.0.0.1:8100", weight=weight)
    assert RoutingTable.from_json(table.to_json()) == table


def test_fields_of_a_newer_control_plane_do_no_harm() -> None:
    table = make_table("http://127.0.0.1:8100", weight=25.0)
    raw = json.loads(table.to_json()) | {"new": 1}
    for routes in (raw["aliases"], raw["versions"], raw["tokens"]):
        for route in routes.values():
            route["new"] = 1
    raw["aliases"]["eu/compliance"]["rollout"]["new"] = 1
    assert RoutingTable.from_json(json.dumps(raw)) == table


@pytest.mark.parametrize("text", ["", "1", "[]", "{}", '"x"', "null", b"\xff"])
def test_other_texts_are_no_table(text: str | bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - JSON's and ours
        RoutingTable.from_json(text)


@pytest.mark.parametrize("field", ["generation", "published_at", "aliases", "adapters", "versions", "tokens"])
@pytest.mark.parametrize("bad", [None, "x", [1]])
def test_a_table_with_a_bad_field_is_none(field: str, bad: object) -> None:
    raw = json.loads(make_table().to_json()) | {field: bad}
    with pytest.raises(ValueError):  # noqa: PT011 - the number's and ours
        RoutingTable.from_json(json.dumps(raw))
