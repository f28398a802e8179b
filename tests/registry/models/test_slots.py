"""What cannot fit on the replicas is refused before anything is pushed, with the numbers."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from adapterhub.accounts.models import User
from adapterhub.core.errors import Invalid
from registry.models import AdapterVersion, Alias, Rollout


def begin(alias: Alias, candidate: AdapterVersion, alice: User) -> Rollout:
    return Rollout.create(alias=alias, candidate=candidate, steps=[{"weight": 50}], reason="try", by=alice.as_actor())


def with_slots(alias: Alias, count: int) -> Alias:
    alias.cluster.max_loras = count
    alias.cluster.save()
    return alias


def test_a_rollout_needs_a_slot_for_each_side(alias: Alias, candidate: AdapterVersion, alice: User) -> None:
    with_slots(alias, 1)
    with pytest.raises(Invalid, match=r"1 adapter slot a replica; its running rollouts hold 0 versions.* 2: end one"):
        begin(alias, candidate, alice)
    assert not Rollout.objects.exists()
    with_slots(alias, 2)
    begin(alias, candidate, alice)


def test_rollouts_that_share_a_version_share_its_slot(
    alias: Alias, candidate: AdapterVersion, alice: User, make_version: Callable[..., AdapterVersion]
) -> None:
    with_slots(alias, 2)
    begin(alias, candidate, alice)
    other = Alias.create(
        project=alias.project,
        name="other",
        cluster=alias.cluster,
        version=alias.version,
        policy={},
        by=alice.as_actor(),
    )
    third = make_version(alias.version.adapter, seed=7)
    with pytest.raises(Invalid, match=r"hold 2 versions.* 3"):
        begin(other, third, alice)
    begin(other, candidate, alice)
