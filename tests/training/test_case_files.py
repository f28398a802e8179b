"""Every file of tests/cases/ is read, noticed or refused as docs/data.md says."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from training.datasets.readers import format_of, records_of
from training.datasets.scan import Scan, scan

CASES = Path(__file__).parent.parent / "cases"
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Case:
    """The outcome of a file: its rows in both splits, the form it is read as, words of its errors and warnings."""

    splits: tuple[int, int] = (36, 4)
    form: str = "prompt and completion"
    refused: str = ""
    warned: str = ""
    encoding: str = ""
    mapping: dict[str, str] = field(default_factory=dict)
    holds: Callable[[dict[str, Any]], bool] = bool


def has_roles(*roles: str) -> Callable[[dict[str, Any]], bool]:
    return lambda row: tuple(turn["role"] for turn in row["messages"]) == roles


def calls(row: dict[str, Any]) -> bool:
    return any(turn.get("tool_calls") for turn in row["messages"])


TALK, OPENAI = ("user", "assistant"), "OpenAI messages"
CASE_OF = {
    "01_sharegpt.jsonl": Case(form="ShareGPT", holds=has_roles("system", *TALK), warned="column 'id' is not used"),
    "01b_sharegpt_toolroles.jsonl": Case(
        form="ShareGPT", holds=has_roles("user", "assistant", "tool", "assistant"), warned="a function call has no name"
    ),
    "01d_sharegpt_system_column.jsonl": Case(form="ShareGPT", holds=has_roles("system", *TALK)),
    "02_alpaca.jsonl": Case(form="Alpaca", holds=lambda row: row["prompt"].startswith("What does rule")),
    "02b_alpaca_with_input.jsonl": Case(
        form="Alpaca", holds=lambda row: row["prompt"].startswith("Answer from the handbook.\n\nWhat does rule")
    ),
    "03_array_pretty.json": Case(),
    "03c_object_data.json": Case(),
    "04_bom.jsonl": Case(),
    "05_crlf.jsonl": Case(),
    "06_utf16.jsonl": Case(),
    "06c_latin1.jsonl": Case(encoding="latin-1", holds=lambda row: row["prompt"].endswith("é")),
    "07_plain.jsonl.gz": Case(),
    "10_same_system_0.jsonl": Case((180, 20), OPENAI),
    "10_same_system_1.jsonl": Case((180, 20), OPENAI),
    "10b_two_system_prompts.jsonl": Case(form=OPENAI),
    "11_openai_tools.jsonl": Case(form=OPENAI, holds=lambda row: calls(row) and bool(row["tools"])),
    "11b_openai_tools_last_call.jsonl": Case(form=OPENAI, holds=calls),
    "11c_tool_calls_with_text.jsonl": Case(form=OPENAI, holds=calls),
    "12_openai_weight.jsonl": Case(form=OPENAI, holds=lambda row: row["messages"][1]["weight"] == 0),
    "13_content_parts.jsonl": Case(form=OPENAI, holds=lambda row: row["messages"][0]["content"].startswith("What")),
    "13b_developer_role.jsonl": Case(form=OPENAI, holds=has_roles("system", *TALK)),
    "14_dpo.jsonl": Case(
        form="preference pairs (chosen, rejected)", holds=lambda row: row["rejected"] == "I do not know."
    ),
    "15_trl_conv_prompt.jsonl": Case(form="TRL conversational prompt and completion", holds=has_roles(*TALK)),
    "16_reasoning.jsonl": Case(
        form=OPENAI, holds=lambda row: "think of piers" in row["messages"][1]["reasoning_content"]
    ),
    "17_pretokenised.jsonl": Case(refused="line 1, pre_tokenised: The row is pre-tokenised"),
    "18_empty_completion.jsonl": Case(refused="line 4, empty: completion is missing"),
    "19_dups.jsonl": Case((108, 12), warned="exact copies"),
    "20_injection.jsonl": Case(
        form=OPENAI,
        warned="a prompt holds <|im_end|>, which a tokenizer may read as a control token (lines 1, 2, 3, 4, 5, ...)",
    ),
    "21_text_prerendered.jsonl": Case(form="text", warned="the trained text holds <|im_start|> already"),
    "21b_completion_with_eos.jsonl": Case(warned="the trained text holds <|im_end|> already"),
    "22_long_prompt.jsonl": Case(),
    "22b_mixed_long.jsonl": Case(),
    "22c_long_answer.jsonl": Case(),
    "23_multi.jsonl": Case(form=OPENAI, holds=has_roles(*TALK, *TALK)),
    "23b_assistant_first.jsonl": Case(form=OPENAI, holds=has_roles("assistant", *TALK)),
    "23e_empty_system.jsonl": Case(form=OPENAI, holds=has_roles(*TALK), warned="an empty system turn was left out"),
    "24d_split_column.jsonl": Case((32, 8)),
    "31_semicolon_bom.csv": Case(holds=lambda row: row["completion"].endswith("; äöü")),
    "31b_semicolon_cp1252.csv": Case(encoding="cp1252", holds=lambda row: row["completion"].endswith("; äöü")),
    "32_other_names.csv": Case(refused='mapping would work: {"prompt": "question", "completion": "answer"}'),
    "33_pipe.csv": Case(),
    "40_liststruct.parquet": Case(form=OPENAI, holds=has_roles(*TALK)),
    "40c_tools.parquet": Case(form=OPENAI, holds=calls),
    "40d_messages_as_json_text.parquet": Case(form=OPENAI, holds=has_roles(*TALK)),
    "50_own_validation.jsonl": Case((45, 5)),
    "51_nfc_nfd_twins.jsonl": Case((108, 12), warned="60 rows are exact copies"),
    "52_contradictions.jsonl": Case((108, 12), warned="answer a prompt otherwise than an earlier row (lines "),
    "53_null_columns.jsonl": Case(),
    "60_sorted_by_source.jsonl": Case((1800, 200)),
}


def scanned(name: str, case: Case, folder: Path) -> Scan:
    return scan(records_of(CASES / name, str(format_of(name)), case.encoding), folder, case.mapping)


def stored(folder: Path) -> Rows:
    files = (folder / "train.jsonl", folder / "eval.jsonl")
    return [json.loads(line) for file in files for line in file.read_bytes().splitlines()]


@pytest.mark.parametrize("name", sorted(CASE_OF))
def test_a_file_is_read_or_refused_with_the_way_out(name: str, tmp_path: Path) -> None:
    case = CASE_OF[name]
    result = scanned(name, case, tmp_path)
    if case.refused:
        first = result.errors[0]
        assert case.refused in f"line {first.line}, {first.code}: {first.message}"
        return
    assert result.errors == []
    assert (result.splits["train"], result.splits["eval"]) == case.splits
    assert result.read_as == case.form
    assert case.warned in " ".join(result.warnings())
    assert all(case.holds(row) for row in stored(tmp_path))


def test_no_case_is_forgotten() -> None:
    files = {path.name for path in CASES.iterdir() if path.is_file() and path.suffix != ".py"}
    assert files == set(CASE_OF)


@pytest.mark.parametrize("name", ["06c_latin1.jsonl", "31b_semicolon_cp1252.csv"])
def test_another_encoding_is_refused_with_the_choice(name: str, tmp_path: Path) -> None:
    first = scanned(name, Case(), tmp_path).errors[0]
    assert "choose the file's encoding (as cp1252" in first.message


def test_control_tokens_of_prompts_are_escaped_by_choice(tmp_path: Path) -> None:
    result = scan(records_of(CASES / "20_injection.jsonl", "jsonl"), tmp_path, escape=True)
    prompts = [row["messages"][0]["content"] for row in stored(tmp_path)]
    assert all("< |im_end|>" in prompt and "<|im_end|>" not in prompt for prompt in prompts)
    assert not any("control token" in warning for warning in result.warnings())


def test_a_proposed_mapping_works(tmp_path: Path) -> None:
    case = Case(mapping={"prompt": "question", "completion": "answer"})
    result = scanned("32_other_names.csv", case, tmp_path)
    assert (result.errors, result.rows, result.read_as) == ([], 40, "prompt and completion")
    assert "The column 'id' is not used (40 rows have it)." in result.warnings()
