"""Rows and their tokens."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tiny_model import make_tokenizer, write_jsonl
from training.lm import token_sequences

TOKENIZER = make_tokenizer()
DEEPSEEK_END = "<\uff5cend\u2581of\u2581sentence\uff5c>"


def words(sequence: token_sequences.TokenSequence) -> tuple[str, str]:
    """(what is read, what is learned)"""
    learned = [label for label in sequence.labels if label != token_sequences.IGNORED]
    return TOKENIZER.decode(sequence.ids), TOKENIZER.decode(learned)


@pytest.mark.parametrize(
    ("row", "read", "learned"),
    [
        ({"text": "the bank"}, "the bank <end>", "the bank <end>"),
        ({"prompt": "the bank", "completion": "shall report"}, "the bank shall report <end>", "shall report <end>"),
    ],
)
def test_the_loss_counts_the_completion_and_the_end(row, read: str, learned: str) -> None:
    assert words(token_sequences.tokenise(row, TOKENIZER, 64)) == (read, learned)


@pytest.mark.parametrize("last", ["<unk>", "<pad>", "<s>", "<user>", "unheard-of"])
def test_a_special_token_that_ends_nothing_is_no_end(last: str) -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<s>", "additional_special_tokens": ["<user>"]})
    for row in ({"text": f"the bank {last}"}, {"prompt": "the bank", "completion": f"shall {last}"}):
        sequence = token_sequences.tokenise(row, tokenizer, 64)
        assert (sequence.ids[-1], sequence.labels[-1]) == (tokenizer.eos_token_id, tokenizer.eos_token_id)


@pytest.mark.parametrize("last", ["<end>", "<|im_end|>", "<|eot_id|>", "<end_of_turn>", DEEPSEEK_END, "</s>"])
def test_an_end_that_a_text_has_is_not_added_twice(last: str) -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": [last]})
    sequence = token_sequences.tokenise({"prompt": "the bank", "completion": f"shall {last}"}, tokenizer, 64)
    assert tokenizer.convert_ids_to_tokens(sequence.ids)[-2:] == ["shall", last]


def test_a_token_with_which_the_template_ends_an_answer_is_an_end() -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<over>"]})
    tokenizer.chat_template = "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }} <over> {% endfor %}"
    assert (
        tokenizer.decode(token_sequences.tokenise({"text": "the bank <over>"}, tokenizer, 64).ids) == "the bank <over>"
    )


def test_every_turn_of_the_assistant_is_learned() -> None:
    turns = [("user", "a bank"), ("assistant", "shall report"), ("user", "the risk"), ("assistant", "within hours")]
    messages = [{"role": role, "content": content} for role, content in turns]
    read, learned = words(token_sequences.tokenise({"messages": messages}, TOKENIZER, 64))
    assert read.startswith("<user> a bank <end> <assistant> shall report <end> <user>")
    assert learned == "shall report <end> within hours <end>"


def test_messages_without_a_template_are_refused() -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(token_sequences.DataError, match="chat template"):
        token_sequences.tokenise({"messages": [{"role": "assistant", "content": "a"}]}, tokenizer, 64)


def test_a_row_whose_completion_is_cut_off_is_left_out() -> None:
    rows = [{"prompt": "a bank shall report", "completion": "each"}, {"text": "a bank"}]
    assert len(token_sequences.tokenised(rows, TOKENIZER, 4)) == 1


@pytest.mark.parametrize(
    "line",
    [
        "{no json",
        "[1]",
        '{"prompt": "a"}',
        '{"text": ""}',
        '{"other": "a"}',
        '{"messages": []}',
        '{"messages": [{"role": "user", "content": "a"}]}',
        "\\ud800" * 3,
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a"}\n\n' + line + "\n")
    with pytest.raises(token_sequences.BadRow, match=r"rows\.jsonl, line 3:") as caught:
        token_sequences.read_rows(path)
    assert caught.value.line == 3


def test_text_parquet_and_jsonl_say_the_same(tmp_path: Path) -> None:
    rows = [{"text": "a bank"}, {"text": "the risk"}]
    import pyarrow
    import pyarrow.parquet

    (tmp_path / "rows.txt").write_text("a bank\n\n\nthe risk\n")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    write_jsonl(tmp_path / "rows.jsonl", rows)
    for name in ("rows.txt", "rows.parquet", "rows.jsonl"):
        assert token_sequences.read_rows(tmp_path / name) == rows


@pytest.mark.parametrize(("name", "content"), [("a.jsonl", b"\n\n"), ("a.txt", b"\xff\xfe"), ("a.parquet", b"no")])
def test_a_file_without_rows_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(token_sequences.DataError, match=name):
        token_sequences.read_rows(tmp_path / name)


def test_a_sample_is_fixed_by_its_seed() -> None:
    rows = [{"text": str(number)} for number in range(50)]
    assert (
        token_sequences.sample(rows, 10, 1)
        == token_sequences.sample(rows, 10, 1)
        != token_sequences.sample(rows, 10, 2)
    )
    assert len(token_sequences.sample(rows, 99, 0)) == 50


def test_what_a_length_cuts_is_counted() -> None:
    rows = [
        {"prompt": "a", "completion": "bank"},
        {"prompt": "a bank shall report", "completion": "each"},
        {"prompt": "a", "completion": "bank shall report each incident"},
    ]
    cuts = token_sequences.Cuts()
    assert len(token_sequences.tokenised(rows, TOKENIZER, 4, cuts=cuts)) == 2
    assert (cuts.rows, cuts.cut, cuts.left_out, cuts.without_end) == (3, 2, 1, 1)
