"""Building the routing table asks the database as often for three versions as for one."""

from __future__ import annotations

from collections.abc import Callable

from django.db import connection
from django.test.utils import CaptureQueriesContext

from adapterhub.accounts.models import User
from registry.models import Adapter, AdapterVersion, Alias, Replica
from registry.serving.routing_table import routing_table


def test_queries_do_not_grow_with_versions(
    alias: Alias, adapter: Adapter, make_version: Callable[..., AdapterVersion], alice: User
) -> None:
    replica = alias.cluster.add_replica(url="http://127.0.0.1:1", by=alice.as_actor())
    first = alias.version.served_name
    Replica.objects.filter(pk=replica.pk).update(is_healthy=True, loaded={first: "/served"})
    with CaptureQueriesContext(connection) as before:
        assert routing_table().versions[first].replicas == (replica.url,)
    more = [make_version(adapter, seed=seed).served_name for seed in (21, 22)]
    with CaptureQueriesContext(connection) as after:
        table = routing_table()
    assert len(after) == len(before)
    assert set(table.versions) == {first, *more}
    assert all(table.versions[name].replicas == () for name in more)
