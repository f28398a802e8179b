"""The same user keeps the arm: over routers, over their restarts, and while the ramp grows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from serving_client.reports import hash_of
from tests.fakes.routing import make_table
from tests.fakes.stage import Engine, Router, running_router
from tests.fakes.valkey import Valkey

USERS = [f"user-{number}" for number in range(40)]


def arms(router: Router) -> dict[str, str]:
    return {user: router.complete(user=user).headers["x-rollout-arm"] for user in USERS}


def test_two_routers_and_their_successors_agree(valkey: Valkey, engine: Engine, tmp_path: Path) -> None:
    with running_router(valkey, tmp_path / "one") as one, running_router(valkey, tmp_path / "two") as two:
        one.publish(make_table(engine.url, generation=2, weight=30))
        two.publish(make_table(engine.url, generation=2, weight=30))
        before = arms(one)
        assert set(before.values()) == {"candidate", "control", "stable"}
        assert arms(two) == before
    # Nothing but its snapshot is there to start from.
    valkey.stop()
    with running_router(valkey, tmp_path / "one") as again:
        assert arms(again) == before


def test_a_growing_ramp_takes_nobody_out_of_an_arm(router: Router, engine: Engine) -> None:
    before = dict.fromkeys(USERS, "stable")
    for generation, weight in enumerate((10, 25, 50), start=2):
        router.publish(make_table(engine.url, generation=generation, weight=weight))
        after = arms(router)
        assert all(before[user] in ("stable", arm) for user, arm in after.items())
        before = after
    assert set(before.values()) == {"candidate", "control"}


@pytest.mark.parametrize(
    ("body", "unit"),
    [
        ({"user": 17}, "17"),
        ({"user": "u"}, "u"),
        ({"safety_identifier": "s"}, "s"),
        ({"safety_identifier": 18}, "18"),
        ({"user": "u", "safety_identifier": "s"}, "u"),
        ({"user": "", "safety_identifier": "s"}, "s"),
        ({}, None),
    ],
)
def test_who_asks_is_the_unit(router: Router, engine: Engine, body: dict[str, Any], unit: str | None) -> None:
    router.publish(make_table(engine.url, generation=2, weight=50))
    answer = router.complete(**body)
    assert answer.headers.get("x-rollout-sticky") == (None if unit else "false")
    assert router.reported()[0]["unit"] == (hash_of(unit) if unit else None)
    sent = engine.fake.received[0][0]
    assert all(isinstance(sent[name], str) for name in body if type(body[name]) is int)
