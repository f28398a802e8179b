"""Blind tests: the same prompts sent to two to four versions through the router, stored for a blind vote."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from adapterhub.core.actor import Actor
from adapterhub.core.errors import Invalid, Unavailable
from registry.models import AdapterVersion, BlindTest
from registry.models.approved_versions import require_nameable
from registry.models.blind_test import LETTERS, tally
from registry.playground.client import Answer, ask

STORED_FIELDS = ("text", "response_id", "seconds", "tokens")


def ask_blindly(
    versions: Sequence[AdapterVersion], prompts: Iterable[str], max_tokens: int, *, token: str, by: Actor
) -> list[BlindTest]:
    """Send each prompt to all versions, and store and return one blind test for each prompt.

    `token` is the API token for the router. Raises Invalid before any prompt is sent, if `by` is not a person and for
    versions that callers may not name, and Unavailable at the first prompt that a version does not answer; the tests
    stored before it stay.
    """
    if by.user is None:
        raise Invalid(
            "A blind test is asked by a person: use a token that was made for one, or sign in.", code="person_missing"
        )
    require_nameable(versions)
    body = {"max_tokens": max_tokens, "temperature": 0}
    return [
        store_test(
            versions, prompt, ask([each.served_name for each in versions], token, "", {**body, "prompt": prompt}), by
        )
        for prompt in prompts
    ]


def store_test(versions: Sequence[AdapterVersion], prompt: str, answers: Sequence[Answer], by: Actor) -> BlindTest:
    """Store the answers, one of each version in the same order, as a blind test with an audit event, and return it.

    Raises Unavailable unless every version answered.
    """
    if problem := next((answer.problem for answer in answers if answer.problem), ""):
        raise Unavailable(f"{prompt[:80]!r} was not answered by every version. {problem}", code="not_answered")
    stored_answers = [
        {"number": version.number, **{name: value for name, value in asdict(answer).items() if name in STORED_FIELDS}}
        for version, answer in zip(versions, answers, strict=True)
    ]
    return BlindTest.keep(versions[0].adapter, prompt, stored_answers, by=by)


def view_of(test: BlindTest, viewer: int | None, may_vote: bool) -> dict[str, Any]:
    """Return {test, answers, is_open, mine, votes} for a viewer: answers with letters, own votes, and the tally.

    `viewer` is the key of a user, None for nobody. `is_open` is True while the viewer may still vote: whoever shows the
    result must then hide which version gave which answer.
    """
    own_votes = [vote for vote in test.votes.all() if vote.voter_id == viewer]
    answers = [{**answer, "letter": letter} for letter, answer in zip(LETTERS, test.answers, strict=False)]
    is_open = may_vote and not own_votes
    votes = tally(test.numbers, (vote.preferred for vote in test.votes.all()))
    return {"test": test, "answers": answers, "is_open": is_open, "mine": own_votes, "votes": votes}
