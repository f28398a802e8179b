"""Files of rows in odd spellings, each with what it is read as or refused with."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from training.datasets.readers import format_of, records_of
from training.datasets.scan import scan
from training.datasets.text_streams import NotThisFormat

N = range(40)
Rows = list[dict[str, Any]]


def question(n: int) -> dict[str, Any]:
    return {"role": "user", "content": f"What is {n}?"}


def reply(n: int, **fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": f"It is {n}.", **fields}


def talks(make: Callable[[int], list[Any]], column: str = "messages", **columns: Any) -> Rows:
    return [{column: make(n), **columns} for n in N]


def lines(rows: Rows, encoding: str = "utf-8", end: str = "\n", mark: bytes = b"") -> bytes:
    return mark + "".join(json.dumps(row, ensure_ascii=False) + end for row in rows).encode(encoding)


def prompts(answer: Any = "A", **columns: Any) -> Rows:
    return [{"prompt": f"Q{n} é", "completion": answer, **columns} for n in N]


def parquet(**columns: Any) -> bytes:
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pa.table(columns), sink)
    return sink.getvalue()


def zipped() -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        archive.writestr("rows.jsonl", lines(prompts()))
    return sink.getvalue()


def pretty(rows: Rows) -> bytes:
    return "\n".join(json.dumps(row, indent=2) for row in rows).encode()


@dataclass(frozen=True)
class Odd:
    """A file's name and content; what it is read as with a text of its first row, or a text of its refusal."""

    name: str
    content: bytes
    form: str = "prompt and completion"
    first: str = ""
    warned: str = ""
    refused: str = ""
    encoding: str = ""
    rows: int = 40


def outcome(odd: Odd, folder: Path) -> Any:
    file = folder / odd.name
    file.write_bytes(odd.content)
    return scan(records_of(file, str(format_of(odd.name)), odd.encoding), folder)


def require_read(odd: Odd, folder: Path) -> None:
    """Check that the file is read as it should be."""
    result = outcome(odd, folder)
    assert result.errors == []
    assert (result.rows, result.read_as) == (odd.rows, odd.form)
    if odd.rows:
        assert odd.first in (folder / "train.jsonl").read_text().splitlines()[0]
    assert odd.warned in " ".join(result.warnings())


def require_refused(odd: Odd, folder: Path) -> None:
    """Check that the file is refused with its words."""
    try:
        first = outcome(odd, folder).errors[0]
        message = f"line {first.line}, {first.code}, {first.column}: {first.message}"
    except NotThisFormat as error:
        message = str(error)
    assert odd.refused in message
