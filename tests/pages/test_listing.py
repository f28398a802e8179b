"""Long lists by their address: what is asked for is shown, what cannot be asked for is left out."""

from __future__ import annotations

import pytest
from django.test import Client

from adapterhub.accounts.models import Project, User
from registry.models import Adapter, AdapterVersion, BaseModel


@pytest.fixture
def listed(project: Project, base_model: BaseModel, version: AdapterVersion, alice: User, client: Client) -> Client:
    fields = {"project": project, "base_model": base_model, "by": alice.as_actor()}
    Adapter.create(slug="aml", description="money laundering", **fields)
    Adapter.create(slug="mica", tags=["crypto"], **fields)
    client.force_login(alice)
    return client


@pytest.mark.parametrize(
    ("query", "slugs"),
    [
        ("", ["aml", "dora", "mica"]),
        ("q=money", ["aml"]),
        ("q=CRYPTO", ["mica"]),
        ("q=laundering+aml", ["aml"]),
        ("sort=-name", ["mica", "dora", "aml"]),
        ("sort=-versions", ["dora", "aml", "mica"]),
        ("q=nothing", []),
        ("sort=password&page=9999", ["aml", "dora", "mica"]),
        ("q=%00'%25", []),
        ("sort=newest", ["dora", "aml", "mica"]),
    ],
)
def test_the_address_decides(listed: Client, query: str, slugs: list[str]) -> None:
    answer = listed.get(f"/adapters/?{query}")
    assert [adapter.slug for adapter in answer.context["page"]] == slugs


def test_versions_are_chosen_by_their_state(listed: Client) -> None:
    assert len(listed.get("/adapters/dora/?status=ready&sort=-loss").context["page"]) == 1
    assert len(listed.get("/adapters/dora/?status=rejected").context["page"]) == 0
    assert len(listed.get("/adapters/dora/?status=nonsense").context["page"]) == 1


def test_the_overview_shows_what_waits_only_to_those_who_may_sign(listed: Client, alice: User) -> None:
    assert b"Nothing is waiting for your signature" in listed.get("/").content
