"""No page asks the database more often because it has more to show."""

from __future__ import annotations

import pytest
from django.db import connection, transaction
from django.test import Client
from django.test.utils import CaptureQueriesContext

from adapterhub.accounts.models import Project, User
from registry.models import AdapterVersion
from tests.pages.every_page import every_page, pages_to_cover
from tests.pages.realistic import World, cast
from training.models import Dataset

# One of them asks how large the events are that the page shows.
MOST = 13


def counted(client: Client, world: World, version: AdapterVersion, dataset: Dataset) -> dict[str, int]:
    """Name of the page -> its queries, the session's and the user's among them."""
    queries_of = {}
    for name, url in every_page(world, version, dataset).items():
        with CaptureQueriesContext(connection) as queries:
            answer = client.get(url)
        assert answer.status_code == 200, f"{name}: {answer.status_code} {answer.content.decode()[-900:]}"
        # A part of a transaction is no question: pages that keep a fact open one.
        queries_of[name] = sum("SAVEPOINT" not in query["sql"] for query in queries)
    return queries_of


@pytest.mark.slow
def test_no_page_makes_more_than_thirteen_queries_whatever_the_number_of_rows(
    project: Project, alice: User, candidate: AdapterVersion, dataset: Dataset, client: Client
) -> None:
    client.force_login(alice)
    with transaction.atomic():
        few = counted(client, World(project, alice, adapters=3, versions=9), candidate, dataset)
        transaction.set_rollback(True)
    cast(project)
    many = counted(client, World(project, alice, adapters=12, versions=48), candidate, dataset)
    assert {name: (few[name], count) for name, count in many.items() if count > MOST or count > few[name]} == {}
    assert set(many) == pages_to_cover()
