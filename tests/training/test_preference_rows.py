"""Preference rows in the spellings that people bring: read, held out by their prompt, or refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.tiny_model import make_tokenizer, write_jsonl
from training.datasets import row_preview
from training.datasets.line_errors import BadLine
from training.datasets.readers import records_of
from training.datasets.rows import reading
from training.datasets.scan import Scan, scan
from training.datasets.token_lengths import measured

ASKED = {"role": "user", "content": "Where?"}
GOOD = {"role": "assistant", "content": "At pier three."}
BAD = {"role": "assistant", "content": "I do not know."}
BRIEF = {"role": "system", "content": "Be brief."}
TALK = {"prompt": [ASKED], "chosen": [GOOD], "rejected": [BAD]}
TEXTS = {"prompt": "Where?", "chosen": "At pier three.", "rejected": "I do not know."}
TOOL = {"type": "function", "function": {"name": "find"}}


@pytest.mark.parametrize(
    ("record", "row"),
    [
        pytest.param(TEXTS, TEXTS, id="TRL, explicit prompt"),
        pytest.param(
            {"chosen": "The sky is blue.", "rejected": "The sky is green."},
            {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."},
            id="TRL, implicit prompt",
        ),
        pytest.param(TALK, TALK, id="TRL, conversational"),
        pytest.param({"chosen": [ASKED, GOOD], "rejected": [ASKED, BAD]}, TALK, id="TRL, conversational and implicit"),
        pytest.param(
            {"prompt": [ASKED], "chosen": [GOOD], "rejected": [BAD], "tools": [TOOL]},
            {**TALK, "tools": [TOOL]},
            id="TRL, with tools",
        ),
        pytest.param(
            {
                "input": {"messages": [ASKED], "tools": [TOOL], "parallel_tool_calls": True},
                "preferred_output": [GOOD],
                "non_preferred_output": [BAD],
            },
            {**TALK, "tools": [TOOL]},
            id="OpenAI",
        ),
        pytest.param(
            {
                "chosen": "\n\nHuman: Where?\n\nAssistant: At pier three.",
                "rejected": "\n\nHuman: Where?\n\nAssistant: At sea.",
            },
            {"prompt": "\n\nHuman: Where?\n\nAssistant:", "chosen": " At pier three.", "rejected": " At sea."},
            id="HH-RLHF",
        ),
        pytest.param(
            {
                "prompt": "Where?",
                "prompt_id": "1",
                "chosen": [ASKED, GOOD],
                "rejected": [ASKED, BAD],
                "messages": [ASKED, GOOD],
                "score_chosen": 8.5,
                "score_rejected": 4.0,
            },
            TALK,
            id="UltraFeedback, binarised",
        ),
        pytest.param({"prompt": "Where?", "chosen": [GOOD], "rejected": [BAD]}, TALK, id="text and messages"),
        pytest.param({"messages": [ASKED], "chosen": GOOD, "rejected": BAD}, TALK, id="Axolotl"),
        pytest.param(
            {
                "conversations": [{"from": "human", "value": "Where?"}],
                "chosen": {"from": "gpt", "value": "At pier three."},
                "rejected": {"from": "gpt", "value": "I do not know."},
            },
            TALK,
            id="LLaMA-Factory, ShareGPT",
        ),
        pytest.param(
            {"instruction": "Where?", "input": "The boat.", "chosen": "At pier three.", "rejected": "I do not know."},
            {**TEXTS, "prompt": "Where?\n\nThe boat."},
            id="LLaMA-Factory, Alpaca",
        ),
        pytest.param(
            {"system": "Be brief.", "question": "Where?", "chosen": "At pier three.", "rejected": "I do not know."},
            {**TEXTS, "prompt": "Be brief.\n\nWhere?"},
            id="Orca pairs",
        ),
        pytest.param({"system": "Be brief.", **TALK}, {**TALK, "prompt": [BRIEF, ASKED]}, id="system column"),
        pytest.param(
            {"prompt": json.dumps([ASKED]), "chosen": json.dumps([GOOD]), "rejected": json.dumps([BAD])},
            TALK,
            id="messages as JSON text",
        ),
        pytest.param(
            {"prompt": "Where?", "completion": "At sea.", "label": False},
            {"prompt": "Where?", "completion": "At sea.", "label": False},
            id="KTO",
        ),
        pytest.param(
            {"prompt": "Where?", "completion": "At sea.", "label": "True"},
            {"prompt": "Where?", "completion": "At sea.", "label": True},
            id="KTO, of a CSV file",
        ),
        pytest.param(
            {"prompt": [ASKED], "completion": [GOOD], "label": True},
            {"prompt": [ASKED], "completion": [GOOD], "label": True},
            id="KTO, conversational",
        ),
        pytest.param(
            {"messages": [BRIEF, ASKED, BAD], "label": False},
            {"prompt": [BRIEF, ASKED], "completion": [BAD], "label": False},
            id="KTO, messages",
        ),
    ],
)
def test_every_spelling_is_read(record: dict[str, Any], row: dict[str, Any]) -> None:
    assert reading(record).row == row


@pytest.mark.parametrize(
    ("record", "code", "fragment"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "same_answers", "the same"),
        ({"prompt": "a", "chosen": "b"}, "empty", "rejected is missing"),
        ({"chosen": "Yes.", "rejected": "No."}, "empty", "do not begin with a common one"),
        ({"chosen": [ASKED, GOOD], "rejected": [GOOD]}, "empty", "prompt is missing"),
        ({**TALK, "prompt": [ASKED, GOOD]}, "no_question", "ends with an answer"),
        ({**TALK, "chosen": [ASKED]}, "no_answer", "chosen does not continue"),
        ({**TALK, "rejected": [BAD, ASKED]}, "no_answer", "last message"),
        ({**TEXTS, "weight": 0.5}, "pair_weight", "cannot have a weight"),
        ({**TALK, "chosen": [{**GOOD, "weight": 0.5}]}, "bad_weight", "give 0 or 1"),
        ({**TALK, "chosen": [{**GOOD, "weight": 0}]}, "bad_weight", "leave the row out"),
        ({**TEXTS, "tools": [TOOL]}, "tools_without_messages", "tools"),
        ({"completion": "b", "label": True}, "empty", "prompt is missing"),
        (
            {"instruction": "a", "chosen_response": "b", "rejected_response": "c"},
            "no_form",
            '{"prompt": "instruction", "chosen": "chosen_response", "rejected": "rejected_response"}',
        ),
        (
            {"question": "a", "response_j": "b", "response_k": "c"},
            "no_form",
            '{"prompt": "question", "chosen": "response_j", "rejected": "response_k"}',
        ),
    ],
)
def test_what_is_no_pair_is_refused_with_the_way_out(record: dict[str, Any], code: str, fragment: str) -> None:
    with pytest.raises(BadLine) as refused:
        reading(record)
    assert refused.value.code == code
    assert fragment in str(refused.value)


def test_a_mapping_reads_other_names() -> None:
    record = {"question": "Where?", "response_j": "At pier three.", "response_k": "I do not know."}
    mapping = {"prompt": "question", "chosen": "response_j", "rejected": "response_k"}
    assert reading(record, mapping).row == TEXTS


def test_a_mapping_of_the_answer_drops_no_label() -> None:
    record = {"question": "Where?", "reply": "At sea.", "label": False}
    row = reading(record, {"prompt": "question", "completion": "reply"}).row
    assert row == {"prompt": "Where?", "completion": "At sea.", "label": False}


def test_columns_that_are_not_read_are_told() -> None:
    record = {**TALK, "score_chosen": 8.5, "messages": [ASKED, GOOD]}
    assert reading(record).unused == {"score_chosen", "messages"}


def scanned(folder: Path, rows: list[dict[str, Any]]) -> Scan:
    return scan(records_of(write_jsonl(folder / "rows.jsonl", rows), "jsonl"), folder)


def test_all_pairs_of_a_prompt_are_on_one_side_of_the_split(tmp_path: Path) -> None:
    questions = [{"role": "user", "content": f"Where is boat {n}?"} for n in range(40)]
    rows = [
        {
            "prompt": [BRIEF, question] if n % 2 else [question],
            "chosen": [GOOD],
            "rejected": [{**BAD, "content": f"No {n}."}],
        }
        for question in questions
        for n in range(3)
    ]
    result = scanned(tmp_path, rows)
    assert result.splits == {"train": 108, "eval": 12}
    sides = {name: (tmp_path / f"{name}.jsonl").read_text().splitlines() for name in ("train", "eval")}
    questions_of = {name: {json.loads(line)["prompt"][-1]["content"] for line in sides[name]} for name in sides}
    assert not questions_of["train"] & questions_of["eval"]
    assert result.warnings() == []


def test_pairs_that_contradict_each_other_are_a_warning(tmp_path: Path) -> None:
    rows = [{**TEXTS, "prompt": f"{n}?"} for n in range(120)]
    turned = {"prompt": "7?", "chosen": TEXTS["rejected"], "rejected": TEXTS["chosen"]}
    (warning,) = scanned(tmp_path, [*rows, turned]).warnings()
    assert warning == "1 row prefers the answer that an earlier row rejects (line 121): keep one of them."


def test_kinds_of_rows_do_not_mix(tmp_path: Path) -> None:
    (error,) = scanned(tmp_path, [TEXTS, {"prompt": "a", "completion": "b", "label": True}]).errors
    assert (error.code, error.message) == (
        "mixed_forms",
        "The rows before hold preference pairs, this one answers marked good or bad: separate them.",
    )


@pytest.mark.parametrize("in_chat", [False, True])
@pytest.mark.parametrize("prompt", [{}, {"prompt": "Where?"}], ids=["without a prompt", "with a text as prompt"])
def test_conversations_that_an_older_release_stored_are_refused_by_name(in_chat: bool, prompt: dict[str, str]) -> None:
    stored = {"chosen": [ASKED, GOOD], "rejected": [ASKED, BAD], **prompt}
    with pytest.raises(row_preview.NotReadable, match="upload the file again"):
        measured(stored, make_tokenizer(), row_preview.ReadingOfRows(in_chat))
