"""The text of an API token: made, taken apart, and what is none."""

from __future__ import annotations

import pytest

from adapterhub.core.tokens import ID_LENGTH, id_and_secret_of, new_id_and_secret, secret_hash, text_of


def test_a_token_comes_apart_as_it_was_made() -> None:
    token_id, secret = new_id_and_secret()
    assert len(token_id) == ID_LENGTH
    assert id_and_secret_of(text_of(token_id, secret)) == (token_id, secret)


def test_no_two_are_alike() -> None:
    assert len({new_id_and_secret() for _ in range(100)}) == 100


@pytest.mark.parametrize("text", ["", "ah", "ah_0123456789ab", "Bearer"])
def test_what_has_not_three_parts_is_no_token(text: str) -> None:
    assert id_and_secret_of(text) is None


def test_a_secret_may_hold_the_separator() -> None:
    assert id_and_secret_of("ah_0123456789ab_a_b") == ("0123456789ab", "a_b")


def test_the_hash_is_that_of_the_tokens_in_the_database() -> None:
    assert secret_hash("") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
