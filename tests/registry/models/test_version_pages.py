"""One page of an adapter's versions is read in the order of an index: no sort of all of them."""

from __future__ import annotations

from django.db import connection
from django.test.utils import CaptureQueriesContext

from registry.models import AdapterVersion
from tests.builders.rest import client


def test_a_page_is_read_from_the_index(ci: str, version: AdapterVersion) -> None:
    with CaptureQueriesContext(connection) as queries:
        answer = client(ci).get(f"/api/v1/adapters/{version.adapter.slug}/versions/?page_size=10")
    assert [row["served_name"] for row in answer.json()["results"]] == [version.served_name]
    # The rows are asked for their size first, and then for all of them.
    pages = [query["sql"] for query in queries if 'ORDER BY "registry_adapterversion"."id" DESC' in query["sql"]]
    assert len(pages) == 2
    for page in pages:
        with connection.cursor() as cursor:
            # The few rows of a test are cheaper to read in whole: only then may the planner choose as it does for many.
            cursor.execute("SET LOCAL enable_seqscan = off; SET LOCAL enable_sort = off")
            cursor.execute("SET LOCAL enable_bitmapscan = off")
            cursor.execute(f"EXPLAIN {page}")
            plan = "\n".join(row for (row,) in cursor.fetchall())
        assert "versions_newest_first" in plan
        assert "Sort" not in plan
