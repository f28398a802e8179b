"""The page of an object tells its story from the trail: who did what to it, when and why."""

from __future__ import annotations

from typing import Any

import pytest
from django.test import Client
from django.urls import reverse

from adapterhub.accounts.models import User
from registry.models import AdapterVersion, Alias
from tests.builders.pages import one_of_everything
from training.models import Dataset


@pytest.fixture
def world(alias: Alias, candidate: AdapterVersion, dataset: Dataset, alice: User) -> dict[str, Any]:
    return one_of_everything(alias, candidate, dataset, alice.as_actor())


@pytest.mark.parametrize(
    ("page", "words"),
    [
        ("alias", "alice created the alias"),
        ("cluster", "alice created the cluster"),
        ("dataset", "alice created the dataset"),
        ("training-run", "alice requested the training run"),
        ("rank-analysis", "alice requested the rank analysis"),
        ("rollout", "alice opened the rollout"),
        ("version", "alice published the version"),
        ("adapter", "alice created the adapter"),
    ],
)
def test_the_page_of_an_object_shows_its_timeline(
    world: dict[str, Any], page: str, words: str, bob: User, client: Client
) -> None:
    client.force_login(bob)
    html = client.get(reverse(page, args=world[page])).content.decode()
    assert words in html
