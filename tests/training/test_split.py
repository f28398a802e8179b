"""The split: whole groups, about a tenth of the rows, whatever rows share."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.datasets.split import Keys, split


def chat(*texts: str, system: str = "") -> dict[str, Any]:
    turns = [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(texts)]
    return {"messages": [{"role": "system", "content": system}] * bool(system) + turns}


def held_out(rows: list[dict[str, Any]]) -> list[bool]:
    keys = Keys.none()
    for row in rows:
        keys.add(row)
    return list(split(keys).held_out.tolist())


@pytest.mark.parametrize("count", [2, 10, 40, 199, 1000])
def test_a_tenth_is_held_out_whatever_system_prompt_the_chats_share(count: int) -> None:
    rows = [chat(f"question {n}?", "answer", system=f"You are number {n % 2}.") for n in range(count)]
    assert sum(held_out(rows)) == max(1, round(count / 10))


def test_a_conversation_that_begins_another_is_in_its_group() -> None:
    short = [chat(f"q{n}", f"a{n}") for n in range(30)]
    middle = [chat(f"q{n}", f"a{n}", "more?", "yes") for n in range(30)]
    longest = [chat(f"q{n}", f"a{n}", "more?", "yes", "really?", "no") for n in range(30)]
    held_out_rows = held_out([*short, *middle, *longest])
    assert held_out_rows[:30] == held_out_rows[30:60] == held_out_rows[60:]
    assert sum(held_out_rows) == 9


def test_system_prompts_case_and_unicode_form_part_no_group() -> None:
    rows = [chat(f"Café {n // 2}", "oui", system=f"s{n}") for n in range(40)]
    twins = [chat(f"CAFÉ  {n // 2}", "non") for n in range(40)]
    held_out_rows = held_out([*rows, *twins])
    assert held_out_rows[:40] == held_out_rows[40:]


def test_one_large_document_stays_in_training() -> None:
    rows = [{"text": f"t{n}", "document": "big" if n < 60 else str(n)} for n in range(100)]
    held_out_rows = held_out(rows)
    assert not any(held_out_rows[:60])
    assert sum(held_out_rows) == 10


def test_where_all_groups_are_large_the_smallest_is_held_out() -> None:
    rows = [{"prompt": "abc"[min(n // 40, 2)], "completion": str(n)} for n in range(100)]
    assert held_out(rows) == [False] * 80 + [True] * 20


def test_one_group_alone_cannot_be_split() -> None:
    assert not any(held_out([{"prompt": "the same", "completion": str(n)} for n in range(50)]))


WORDS = st.sampled_from(["a", "b", "c"])
ROWS = st.lists(
    st.one_of(
        st.lists(WORDS, min_size=1, max_size=4).map(lambda texts: chat(*texts, *["z"] * (len(texts) % 2))),
        WORDS.map(lambda word: {"prompt": word, "completion": "x"}),
        WORDS.map(lambda word: {"text": word, "document": word}),
    ),
    min_size=2,
    max_size=30,
)


@given(ROWS)
def test_no_group_is_in_both_parts(rows: list[dict[str, Any]]) -> None:
    held_out_rows = held_out(rows)
    texts = [tuple(turn["content"] for turn in row.get("messages", ())) for row in rows]
    for one, first in enumerate(texts):
        for other, second in enumerate(texts):
            if first and second[: len(first)] == first:
                assert held_out_rows[one] == held_out_rows[other]
