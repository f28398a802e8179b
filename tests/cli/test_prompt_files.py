"""Files of prompts for `adapterhub blind ask`: one on each line, or JSON Lines, whose prompts may have many lines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from adapterhub.cli.blind_test_commands import prompts_in
from adapterhub.cli.exit_codes import Ended, Exit

LONG = "Summarise:\n\n  Article 17\u2028of the act\n"


def written(folder: Path, name: str, text: str | bytes) -> Path:
    file = folder / name
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return file


def test_json_lines_hold_prompts_of_many_lines(tmp_path: Path) -> None:
    lines = [json.dumps(LONG), "", json.dumps({"prompt": LONG}, ensure_ascii=False), '"one"\r']
    assert prompts_in(written(tmp_path, "prompts.JSONL", "\n".join(lines))) == [LONG, LONG, "one"]


def test_a_text_holds_one_prompt_on_each_line(tmp_path: Path) -> None:
    assert prompts_in(written(tmp_path, "prompts.txt", 'one\r\n\n  {"prompt": "two"}\n')) == [
        "one",
        '  {"prompt": "two"}',
    ]
    assert prompts_in(None) == []


@pytest.mark.parametrize("line", ["plain", "5", "null", '""', '" "', "[]", '{"text": "a"}', '{"prompt": "a", "n": 2}'])
def test_a_line_that_holds_no_prompt_is_named(tmp_path: Path, line: str) -> None:
    with pytest.raises(Ended, match=r"prompts\.jsonl, line 2 ") as refused:
        prompts_in(written(tmp_path, "prompts.jsonl", f'"one"\n{line}\n'))
    assert refused.value.code is Exit.USAGE


def test_a_file_of_other_bytes_is_named(tmp_path: Path) -> None:
    with pytest.raises(Ended, match="is not UTF-8"):
        prompts_in(written(tmp_path, "prompts.txt", b"\xff\xfe"))
