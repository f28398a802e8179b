"""Files of every format become the same rows; what is no row is named by its line."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from tests.builders import rows
from training.datasets.line_errors import MAX_ROW_BYTES
from training.datasets.readers import format_of, records_of
from training.datasets.scan import Scan, scan
from training.datasets.text_streams import NotThisFormat


def scanned(path: Path, form: str = "", mapping: dict[str, str] | None = None) -> Scan:
    return scan(records_of(path, form or str(format_of(path.name))), path.parent, mapping)


def written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def codes(result: Scan) -> list[tuple[int, str]]:
    return [(error.line, error.code) for error in result.errors]


def stored(folder: Path) -> list[dict[str, Any]]:
    files = (folder / "train.jsonl", folder / "eval.jsonl")
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def as_jsonl(path: Path) -> Path:
    return written(path / "a.jsonl", "\ufeff" + "".join(json.dumps(row) + "\n\n" for row in rows(30)))


def as_csv(path: Path) -> Path:
    with (path / "a.csv").open("w", newline="") as stream:
        table = csv.DictWriter(stream, ["prompt", "completion"], delimiter=";")
        table.writeheader()
        table.writerows(rows(30))
    return path / "a.csv"


def as_parquet(path: Path) -> Path:
    table = [{**row, "messages": None} for row in rows(30)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(table), path / "a.parquet")
    return path / "a.parquet"


@pytest.mark.parametrize("write", [as_jsonl, as_csv, as_parquet])
def test_every_format_gives_the_same_rows(tmp_path: Path, write: Any) -> None:
    result = scanned(write(tmp_path))
    assert (result.errors, result.rows, result.columns) == ([], 30, {"prompt", "completion"})
    assert sorted(stored(tmp_path), key=lambda row: row["prompt"]) == sorted(rows(30), key=lambda row: row["prompt"])


def test_texts_stand_between_empty_lines(tmp_path: Path) -> None:
    result = scanned(written(tmp_path / "a.txt", "one\nmore\n\n  \n\ntwo\r\n\r\nthree"))
    assert {row["text"] for row in stored(tmp_path)} == {"one\nmore", "two", "three"}
    assert result.errors == []


def test_columns_are_mapped(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", "q,a,case\nwhat?,this,7\nwhy?,so,7\n")
    result = scanned(path, mapping={"prompt": "q", "completion": "a", "document": "case"})
    assert result.errors == []
    assert {row["document"] for row in stored(tmp_path)} == {"7"}
    assert codes(scanned(path, mapping={"text": "body"})) == [(2, "missing_column"), (3, "missing_column")]


def test_conversations_of_both_words_are_read(tmp_path: Path) -> None:
    openai = {"messages": [{"role": "user", "content": "why?"}, {"role": "assistant", "content": "so"}]}
    sharegpt = {"messages": [{"from": "human", "value": "why?"}, {"from": "gpt", "value": "so"}]}
    path = written(tmp_path / "a.jsonl", json.dumps(openai) + "\n" + json.dumps(sharegpt))
    assert scanned(path).errors == []
    assert stored(tmp_path) == [openai, openai]


def test_every_bad_line_is_named(tmp_path: Path) -> None:
    lines = [
        b'{"text": "good"}',
        b"{",
        b"[1]",
        b'{"other": 1}',
        b'{"prompt": "x"}',
        b'{"text": "\xff"}',
        b'{"text": "\\ud800"}',
        b'{"messages": []}',
        b'{"messages": [{"role": "narrator", "content": "x"}]}',
        b'{"messages": [{"role": "user", "content": "x"}]}',
        b"[" * 100_000,
        b'{"text": "' + b"x" * MAX_ROW_BYTES + b'"}',
        b'{"text": "good, too"}',
    ]
    result = scanned(written(tmp_path / "a.jsonl", b"\n".join(lines)))
    assert codes(result) == [
        (2, "not_json"),
        (3, "not_an_object"),
        (4, "no_form"),
        (5, "empty"),
        (6, "not_utf8"),
        (7, "not_utf8"),
        (8, "empty"),
        (9, "bad_role"),
        (10, "no_answer"),
        (11, "not_json"),
        (12, "line_too_long"),
    ]
    assert result.rows == 2
    assert result.errors[3].column == "completion"


def test_the_first_hundred_bad_lines_are_kept_and_all_are_counted(tmp_path: Path) -> None:
    result = scanned(written(tmp_path / "a.jsonl", "{\n" * 250))
    assert (len(result.errors), result.broken, result.errors[-1].line) == (100, 250, 100)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("text\nfine\na,b\n", [(3, "wrong_cells")]),
        ('text\n"open\nand on', [(2, "not_csv")]),
        (b"text\nfine\n\xff\xfe\n", [(3, "not_utf8")]),
        (b"\xff\n", [(1, "not_csv")]),
        ("a,b\n1,2\n", [(2, "no_form")]),
        (b"text\n" + b"x" * (MAX_ROW_BYTES + 10), [(2, "line_too_long")]),
    ],
)
def test_a_broken_table_is_refused_by_line(tmp_path: Path, content: str | bytes, expected: list[Any]) -> None:
    assert codes(scanned(written(tmp_path / "a.csv", content))) == expected


@pytest.mark.parametrize("content", [b"", b"PAR1 and then nothing PAR1", b"{}"])
def test_what_is_no_parquet_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(NotThisFormat, match="Parquet file cannot be read"):
        scanned(written(tmp_path / "a.parquet", content))


def test_copies_and_leaks_are_found(tmp_path: Path) -> None:
    lines = [json.dumps({"prompt": "Why  so?", "completion": "thus", "document": f"d{n}"}) for n in range(40)]
    lines += [json.dumps({"prompt": f"number {n}", "completion": "x"}) for n in range(100)]
    result = scanned(written(tmp_path / "a.jsonl", "\n".join(lines).replace("Why  so", "why SO", 1)))
    copies, leak = result.warnings()
    assert copies.startswith("39 rows")
    assert leak.startswith("1 held-out row is also trained on")


MEMORY = """
import sys
from pathlib import Path
from training.recipes.peak_memory import own_peak
from training.datasets.readers import records_of
from training.datasets.scan import scan
before = own_peak()
found = scan(records_of(Path(sys.argv[1]), sys.argv[2]), Path(sys.argv[3]))
grown = (own_peak() - before) // 2**20
print(grown, found.rows, found.broken)
"""


@pytest.mark.threat("D3")
@pytest.mark.parametrize("form", ["jsonl", "csv", "text"])
@pytest.mark.slow
def test_one_endless_line_takes_no_memory(tmp_path: Path, form: str, request: pytest.FixtureRequest) -> None:
    size = 2**30 if request.config.getoption("--soak") else 2**27
    path = tmp_path / "a"
    with path.open("wb") as stream:
        # One letter before the zeros would be text in UTF-32.
        stream.write(b"xx")
        stream.truncate(size)
    grown, rows_found, broken = measured(path, form)
    assert grown < 100
    assert (rows_found, broken) == (0, 1)


@pytest.mark.slow
def test_a_large_file_takes_little_memory(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    count = 1_000_000 if request.config.getoption("--soak") else 20_000
    path = tmp_path / "a"
    with path.open("w") as stream:
        for number in range(count):
            stream.write(json.dumps({"prompt": f"case {number}", "completion": "x" * 1000}) + "\n")
    grown, rows_found, _ = measured(path, "jsonl")
    assert rows_found == count
    assert grown < 100


def measured(path: Path, form: str) -> list[int]:
    """(MB that the process grew by, rows, bad lines)."""
    command = [sys.executable, "-c", MEMORY, str(path), form, str(path.parent)]
    return [int(word) for word in subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()]


@pytest.mark.parametrize(
    ("row", "code", "fragment"),
    [
        ({"prompt": "a", "response": "b"}, "no_form", '{"prompt": "prompt", "completion": "response"}'),
        (
            {"instruction": "a", "context": "c", "response": "b"},
            "no_form",
            '{"instruction": "instruction", "input": "context", "output": "response"}',
        ),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "not_text", "image_url"),
        (
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 2}]},
            "bad_weight",
            "between 0",
        ),
        ({"prompt": "a", "completion": "b", "tools": [{"name": "x"}]}, "tools_without_messages", "tools"),
        ({"prompt": "a", "completion": "b", "split": "third"}, "bad_split", "train, validation or test"),
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "same_answers", "the same"),
    ],
)
def test_what_no_training_would_honour_is_refused_with_the_way_out(
    tmp_path: Path, row: dict[str, Any], code: str, fragment: str
) -> None:
    (error,) = scanned(written(tmp_path / "a.jsonl", json.dumps(row))).errors
    assert error.code == code
    assert fragment in error.message


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", '{"version": 1, "data": [{"text": "one"}, {"text": "two"}]}'),
        ("b.json", '[{"text": "one"}, {"text": "two"}]\n'),
        ("c.json", '{"train": [{"text": "one"}], "test": [{"text": "two"}]}'),
        ("d.jsonl", '\ufeff{"text": "one"}\r\n{"text": "two"}\r\n'.encode("utf-16")),
        ("e.csv", "text\none\ntwo\n".encode("utf-16")),
    ],
)
def test_rows_are_found_in_documents_and_other_encodings(tmp_path: Path, name: str, content: str | bytes) -> None:
    assert scanned(written(tmp_path / name, content)).errors == []
    assert {row["text"] for row in stored(tmp_path)} == {"one", "two"}


@pytest.mark.parametrize(
    "content", ['[{"text": "one"}, {"text": ', '[{"text": "one"} {"text": "two"}]', '[{"text": "one"}] x']
)
def test_a_document_that_is_cut_off_is_refused_behind_its_last_row(tmp_path: Path, content: str) -> None:
    assert [code for _, code in codes(scanned(written(tmp_path / "a.json", content)))] == ["not_json"]


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_compressed_files_are_read(tmp_path: Path, compression: str) -> None:
    lines = "".join(json.dumps(row) + "\n" for row in rows(30)).encode()
    path = tmp_path / f"rows.jsonl.{'gz' if compression == 'gzip' else 'zst'}"
    with pyarrow.output_stream(str(path), compression=compression) as stream:
        stream.write(lines)
    result = scanned(path)
    assert (result.errors, result.rows) == ([], 30)


def test_a_compressed_file_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotThisFormat, match="cannot be unpacked"):
        scanned(written(tmp_path / "a.jsonl.gz", b"\x1f\x8b and no more"))


def test_a_files_own_split_decides(tmp_path: Path) -> None:
    lines = [{"text": f"t{n}", "split": "train" if n else "validation"} for n in range(10)]
    result = scanned(written(tmp_path / "a.jsonl", "\n".join(map(json.dumps, lines))))
    assert result.splits == {"train": 9, "eval": 1}
    assert all(set(row) == {"text"} for row in stored(tmp_path))
