"""The playground asks the router as an application would, and says which version and arm answered."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse

from adapterhub.accounts.models import ApiToken, Project, User
from registry.models import AdapterVersion, Alias, BlindTest
from tests.builders.rest import client as rest
from tests.builders.rest import problem


def ask_playground(client: Client, models: str, **more: Any) -> Any:
    body = {"models": models, "prompt": "Report ", "max_tokens": 8, "temperature": 0, **more}
    return client.post(reverse("playground"), body)


def test_an_answer_names_its_version_and_arm(router: Any, alias: Alias, alice: User, client: Client) -> None:
    client.force_login(alice)
    page = ask_playground(client, "compliance", session="user-17").content.decode()
    assert "within four hours" in page
    assert "dora.v1-abc" in page
    assert "control" in page
    assert "r-17" in page
    assert (router.requests[0]["session"], router.requests[0]["prompt"]) == ("user-17", "Report ")


def test_two_models_stand_side_by_side_and_one_refusal_spares_the_other(
    router: Any, alias: Alias, version: AdapterVersion, alice: User, client: Client
) -> None:
    client.force_login(alice)
    page = ask_playground(client, f"compliance, {version.served_name}").content.decode()
    assert "within four hours" in page
    assert "404: The model does not exist." in page


def test_the_pages_script_gets_the_answers_piece_by_piece(
    router: Any, alias: Alias, version: AdapterVersion, alice: User, client: Client
) -> None:
    client.force_login(alice)
    body = {
        "models": f"compliance, {version.served_name}",
        "prompt": "Report\r\nthis",
        "max_tokens": 8,
        "temperature": 0,
    }
    answer = client.post(reverse("playground"), body, headers={"accept": "application/x-ndjson"})
    parts = [json.loads(line) for line in b"".join(answer.streaming_content).decode().splitlines()]
    assert [part["model"] for part in parts if "model" in part] == ["compliance", version.served_name]
    assert "".join(part["text"] for part in parts if "text" in part) == "within four hours"
    whole = {part["place"]: part["html"] for part in parts if "html" in part}
    assert "within four hours" in whole[0]
    assert "3 tokens" in whole[0]
    assert "404: The model does not exist." in whole[1]
    assert router.requests[0]["prompt"] == "Report\nthis"


def test_a_router_that_is_away_ends_the_stream(alias: Alias, alice: User, client: Client, settings: Any) -> None:
    settings.ROUTER_URL = "http://127.0.0.1:1"
    client.force_login(alice)
    body = {"models": "compliance", "prompt": "Report ", "max_tokens": 8, "temperature": 0}
    answer = client.post(reverse("playground"), body, headers={"accept": "application/x-ndjson"})
    assert b"The router did not respond" in b"".join(answer.streaming_content)


def test_the_only_model_is_chosen(alias: Alias, alice: User, client: Client) -> None:
    client.force_login(alice)
    AdapterVersion.objects.filter(pk=alias.version_id).update(status="archived")
    assert 'value="compliance"' in client.get(reverse("playground")).content.decode()


def test_its_token_infers_only_and_is_made_once(router: Any, alias: Alias, alice: User, client: Client) -> None:
    client.force_login(alice)
    for _ in range(2):
        ask_playground(client, "compliance")
    token = ApiToken.objects.get()
    assert (token.scopes, len({request["token"] for request in router.requests})) == (["infer"], 1)


def test_a_router_that_is_away_keeps_the_prompt(alias: Alias, alice: User, client: Client, settings: Any) -> None:
    settings.ROUTER_URL = "http://127.0.0.1:1"
    client.force_login(alice)
    page = ask_playground(client, "compliance").content.decode()
    assert "The router did not respond" in page
    assert "Report " in page


CHOICE = b'{"choices": [{"text": %s}], "usage": {"completion_tokens": 3}}'
HOSTILE = {
    "endless": CHOICE % (b'"' + b"a" * 2**23 + b'"'),
    "long": CHOICE % (b'"' + b"a" * 30_000 + b'"'),
    "deep": b"[" * 100_000,
    "half a character": CHOICE % rb'"\ud800 and \u0000 within"',
    "a number": CHOICE % b"5",
    "a list": b"[]",
    "a count": b'{"choices": [{"text": "a"}], "usage": {"completion_tokens": 1e999}}',
    "no JSON": b"SSH-2.0",
}
TOO_LONG = {"endless", "long"}


@pytest.mark.threat("D37")
@pytest.mark.parametrize("name", HOSTILE)
def test_an_answer_of_a_hostile_engine_breaks_no_page_and_no_blind_test(
    router: Any, alias: Alias, candidate: AdapterVersion, ci: str, alice: User, client: Client, name: str
) -> None:
    """The attack: the engine is the project's own, and what it sends was read without bound and stored as it was."""
    AdapterVersion.objects.update(status="ready")
    Project.objects.update(named_versions="any")
    client.force_login(alice)
    router.payload = HOSTILE[name]
    try:
        page = ask_playground(client, "compliance")
        body = {"models": "compliance", "prompt": "a", "max_tokens": 8, "temperature": 0}
        streamed = client.post(reverse("playground"), body, headers={"accept": "application/x-ndjson"})
        lines = b"".join(streamed.streaming_content).decode().splitlines()
        blind = {"adapter": "dora", "versions": [1, 2], "prompts": ["the bank"]}
        tested = rest(ci).post("/api/v1/blind-tests/", blind)
    finally:
        router.payload = b""
    assert (page.status_code, streamed.status_code) == (200, 200)
    assert all(json.loads(line) for line in lines)
    if name == "half a character":
        assert "\ufffd and \ufffd within" in page.content.decode()
        assert tested.status_code == 201
        assert tested.json()[0]["answers"][0]["text"] == "\ufffd and \ufffd within"
        return
    reason = "is longer than 20000 characters" if name in TOO_LONG else "The router did not respond"
    assert reason in page.content.decode()
    assert reason in problem(tested, 503, "not_answered")["detail"]
    assert not BlindTest.objects.exists()


@pytest.mark.parametrize("models", ["nothing-of-ours", ",", "a,b,c,d,e"])
def test_names_that_nobody_has_are_refused_on_the_field(alias: Alias, alice: User, client: Client, models: str) -> None:
    client.force_login(alice)
    assert ask_playground(client, models).status_code == 422
    assert not ApiToken.objects.exists()


def test_another_tenants_alias_is_no_name(alias: Alias, charlie: User, client: Client) -> None:
    client.force_login(charlie)
    assert ask_playground(client, "compliance").status_code == 422


def test_the_theme_is_kept_and_leads_back(alice: User, client: Client, make_theme: Callable[..., Any]) -> None:
    client.force_login(alice)
    answer = make_theme(client, "dark")
    assert answer["Location"] == "/adapters/?q=a"
    assert b'data-theme="dark"' in client.get("/adapters/").content
    make_theme(client, "the system's")
    assert b"data-theme" not in client.get("/adapters/").content


@pytest.fixture
def make_theme() -> Callable[..., Any]:
    def choose(client: Client, theme: str) -> Any:
        return client.post(reverse("theme"), {"theme": theme}, headers={"referer": "http://testserver/adapters/?q=a"})

    return choose
