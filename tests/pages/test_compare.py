"""Two to four versions beside each other, and a vote that is blind until it is given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse

from adapterhub.accounts.models import ApiToken, Project, User
from adapterhub.audit.models import AuditEvent
from registry.models import Adapter, AdapterVersion, BlindTest, BlindVote, VersionEvaluation
from registry.pages.version_table import comparison_of
from tests.builders import member
from tests.markup import markup


@pytest.fixture
def three(adapter: Adapter, make_version: Callable[..., AdapterVersion]) -> list[AdapterVersion]:
    return [make_version(adapter, seed=seed, rank=rank) for seed, rank in ((1, 4), (2, 4), (3, 8))]


@pytest.fixture
def blind(three: list[AdapterVersion], alice: User) -> BlindTest:
    answers = [
        {"number": version.number, "text": f"text of {version.number}", "seconds": 0.1, "tokens": 3}
        for version in three
    ]
    return BlindTest.keep(three[0].adapter, "the bank shall", answers, by=alice.as_actor())


def page_of(*others: int) -> str:
    return reverse("compare", args=["eu.dora", 1]) + "?" + "&".join(f"to={other}" for other in others)


def test_three_versions_stand_side_by_side(three: list[AdapterVersion], bob: User, client: Client) -> None:
    arms = {"version": {"exact_match": 0.7125, "answers": []}}
    VersionEvaluation.objects.create(version=three[1], base_digest=three[1].base_digest, metrics={"arms": arms})
    client.force_login(bob)
    page = markup(client.get(page_of(2, 3)))
    assert "dora v1, v2 and v3" in page
    for text in ("0.7125", "lora_alpha", "Highest rank", "What is the same in all"):
        assert text in page
    assert 'action="/adapters/eu.dora/v1/compare/ask/' not in page


def test_differences_come_first_in_words_and_no_list_of_modules_is_dumped(
    make_version: Callable[..., AdapterVersion], adapter: Adapter, bob: User, client: Client
) -> None:
    first, second = make_version(adapter, seed=1), make_version(adapter, seed=2, rank=8)
    different, same = (comparison_of([first, second])[part] for part in ("different", "same"))
    labels = {row["label"]: row["values"] for row in different}
    assert labels["highest rank"] == [str(first.max_rank), "8"]
    assert labels["size"][0].endswith("KB")
    assert not {row["name"] for row in [*different, *same]} & {"rank_pattern", "alpha_pattern"}
    client.force_login(bob)
    page = markup(client.get(page_of(2)))
    assert page.index("What differs") < page.index("What is the same in all") < page.index("The same prompts")
    assert f"Different ranks: {len(first.ranks)} of {len(first.ranks)} modules." in page
    assert "base model (sha256)" in page


@pytest.mark.parametrize("others", [(), (1,), (9,), (2, 3, 4, 5)])
def test_one_version_alone_or_five_are_refused(
    three: list[AdapterVersion], make_version: Callable[..., AdapterVersion], bob: User, client: Client, others: Any
) -> None:
    for seed in (4, 5):
        make_version(three[0].adapter, seed=seed)
    client.force_login(bob)
    assert client.get(page_of(*others)).status_code == 422


@pytest.mark.slow
def test_distances_are_measured_when_asked_for(three: list[AdapterVersion], bob: User, client: Client) -> None:
    client.force_login(bob)
    page = client.get(page_of(2, 3) + "&distances=1").content.decode()
    assert page.count("Cosine distance of every module") == 2


def test_prompts_go_to_every_version_and_the_answers_are_kept(
    router: Any, three: list[AdapterVersion], alice: User, client: Client
) -> None:
    client.force_login(alice)
    router.known = {version.served_name for version in three}
    url = reverse("ask-all", args=["dora", 1]) + "?to=2&to=3"
    answer = client.post(
        url, {"prompts": "the bank shall\r\n\r\n  report\r\n---\r\neach incident\r\n", "max_tokens": 4}
    )
    assert answer["Location"] == page_of(2, 3) + "#answers"
    tests = BlindTest.objects.all()
    assert {test.prompt for test in tests} == {"the bank shall\n\n  report", "each incident"}
    assert all(sorted(each["number"] for each in test.answers) == [1, 2, 3] for test in tests)
    assert len(router.requests) == 6
    assert AuditEvent.objects.about(tests[0])[0].tag == "blind_test:asked"


def test_what_is_not_answered_by_all_keeps_the_prompts_and_nothing_else(
    router: Any, three: list[AdapterVersion], alice: User, client: Client
) -> None:
    client.force_login(alice)
    url = reverse("ask-all", args=["dora", 1]) + "?to=2"
    page = client.post(url, {"prompts": "the bank shall", "max_tokens": 4}).content.decode()
    assert "was not answered by every version" in page
    assert ">\nthe bank shall</textarea>" in page
    assert not BlindTest.objects.exists()
    assert client.post(url, {"prompts": "---\n\n---", "max_tokens": 4}).status_code == 422
    assert client.post(url, {"prompts": "\n---\n".join("a" * 9), "max_tokens": 4}).status_code == 422


def test_a_vote_is_blind_counted_once_and_then_tells_the_versions(
    blind: BlindTest, alice: User, project: Project, client: Client
) -> None:
    client.force_login(alice)
    before = client.get(page_of(2, 3)).content.decode()
    assert "A is best" in before
    assert "tokens in" not in before
    verb = reverse("vote", args=[blind.pk])
    answer = client.post(verb, {"letter": "B"})
    assert answer["Location"] == page_of(2, 3) + f"#test-{blind.pk}"
    liked = blind.answers[1]["number"]
    assert (BlindVote.objects.get().preferred, BlindVote.objects.get().voter) == (liked, alice)
    [event, *_] = AuditEvent.objects.about(blind)
    assert (event.tag, event.after["preferred"]) == ("blind_test:voted", liked)
    after = client.get(page_of(2, 3)).content.decode()
    assert f"You preferred v{liked}" in after
    assert "A is best" not in after
    assert client.post(verb, {"letter": "A"}).status_code == 409
    client.force_login(member("tim", project, "trainer"))
    assert "A is best" in client.get(page_of(2, 3)).content.decode()
    client.post(verb, {"letter": "none"})
    assert BlindVote.objects.filter(preferred=None).count() == 1


@pytest.mark.parametrize("letter", ["D", "E", "", "AB"])
def test_a_letter_that_stands_for_nobody_is_refused(blind: BlindTest, alice: User, client: Client, letter: str) -> None:
    client.force_login(alice)
    assert client.post(reverse("vote", args=[blind.pk]), {"letter": letter}).status_code == 422
    assert not BlindVote.objects.exists()


def test_who_may_not_infer_reads_and_does_not_vote(blind: BlindTest, bob: User, client: Client) -> None:
    client.force_login(bob)
    page = client.get(page_of(2, 3)).content.decode()
    assert "text of 2" in page
    assert "is best" not in page
    assert client.post(reverse("vote", args=[blind.pk]), {"letter": "A"}).status_code == 403


def test_rest_keeps_a_test_blind_until_its_person_has_voted(
    blind: BlindTest, alice: User, ci: str, client: Client
) -> None:
    client.force_login(alice)
    address = f"/api/v1/blind-tests/{blind.pk}/"
    unvoted = client.get(address).json()
    assert [answer["letter"] for answer in unvoted["answers"]] == ["A", "B", "C"]
    assert {answer["number"] for answer in unvoted["answers"]} == {None}
    by_token = {"Authorization": f"Bearer {ci}"}
    refused = client.post(f"{address}vote/", {"letter": "A"}, content_type="application/json", headers=by_token)
    assert (refused.status_code, refused.json()["code"]) == (403, "token_cannot_vote")
    voted = client.post(f"{address}vote/", {"letter": "A"}, content_type="application/json").json()
    liked = blind.answers[0]["number"]
    assert [answer["number"] for answer in voted["answers"]] == [answer["number"] for answer in blind.answers]
    assert [row["votes"] for row in voted["votes"] if row["number"] == liked] == [1]
    assert client.post(f"{address}vote/", {"letter": "B"}, content_type="application/json").status_code == 409
    assert len(client.get("/api/v1/blind-tests/?adapter=dora").json()["results"]) == 1


def test_rest_asks_with_the_callers_own_token(
    router: Any, three: list[AdapterVersion], project: Project, alice: User, client: Client
) -> None:
    token = ApiToken.issue(name="asks", project=project, scopes=["read", "infer"], created_by=alice)[1]
    body = {"adapter": "dora", "versions": [1, 2], "prompts": ["the bank shall"], "max_tokens": 4}
    sent = {"content_type": "application/json", "headers": {"Authorization": f"Bearer {token}"}}
    failed = client.post("/api/v1/blind-tests/", body, **sent)
    assert (failed.status_code, failed.json()["code"]) == (503, "not_answered")
    router.known = {version.served_name for version in three}
    [created] = client.post("/api/v1/blind-tests/", body, **sent).json()
    assert created["versions"] == [1, 2]
    assert {answer["number"] for answer in created["answers"]} == {None}
    assert BlindTest.objects.count() == 1
    for versions in ([1, 1], [1, 9]):
        assert client.post("/api/v1/blind-tests/", {**body, "versions": versions}, **sent).status_code == 422
