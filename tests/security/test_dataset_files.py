"""Small files that unfold: a dataset is decoded in a child with limits, and the web process stays as it was."""

from __future__ import annotations

import json
import resource
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.ipc
import pyarrow.parquet
import pytest
from django.conf import settings
from django.core.files.uploadedfile import SimpleUploadedFile

from tests.builders import rows
from tests.builders.rest import client, problem
from tests.security.bombs import in_arrow, one_endless_row, packed, repeated, zeros_in_arrow
from training.datasets import bounded_scan
from training.models import Dataset

CODECS = ["gzip", "zstd", "snappy", "brotli"]
ARROW = [(pyarrow.ipc.new_file, "zstd"), (pyarrow.ipc.new_stream, "lz4")]


@pytest.fixture(autouse=True)
def work_dir(settings: Any, tmp_path: Path) -> None:
    """A work folder that no other test has left anything in."""
    settings.WORK_DIR = tmp_path / "work"
    settings.WORK_DIR.mkdir()


def sent(token: str, content: bytes, call: str = "", name: str = "rows.parquet") -> Any:
    body = {"project": "eu", "file": SimpleUploadedFile(name, content)}
    return client(token).post(f"/api/v1/datasets/{call}", body, format="multipart")


@pytest.mark.threat("D16")
@pytest.mark.parametrize("call", ["", pytest.param("check/", marks=pytest.mark.slow)])
@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.slow
def test_a_file_that_unfolds_is_refused(ci: str, tmp_path: Path, codec: str, call: str) -> None:
    before = peak_kb()
    content = repeated(tmp_path / "bomb.parquet", codec)
    made = peak_kb()
    problem(sent(ci, content, call), 422, "unfolds_too_far")
    assert peak_kb() - max(made, before) < 50_000
    assert not Dataset.objects.exists()
    assert [path.name for path in settings.WORK_DIR.iterdir()] == []


@pytest.mark.threat("D16")
@pytest.mark.parametrize(("form", "codec"), ARROW, ids=["file-zstd", "stream-lz4"])
@pytest.mark.parametrize("bomb", [in_arrow, zeros_in_arrow])
@pytest.mark.slow
def test_an_arrow_file_that_unfolds_is_refused(ci: str, form: Any, codec: str, bomb: Any) -> None:
    content = bomb(form, codec)
    assert len(content) < 8 * 2**20
    before = peak_kb()
    answer = sent(ci, content, name="rows.arrow")
    assert (answer.status_code, answer.json()["code"] in ("unfolds_too_far", "too_costly")) == (422, True)
    assert peak_kb() - before < 50_000
    assert [path.name for path in settings.WORK_DIR.iterdir()] == []


@pytest.mark.threat("D16")
@pytest.mark.parametrize("codec", ["gzip", "zstd", "bz2"])
@pytest.mark.parametrize("unit", [b"x" * 2**20, b'{"text": "' + b"a" * 2**20 + b'"}\n'], ids=["line", "rows"])
@pytest.mark.slow
def test_a_packed_text_that_unfolds_is_refused(ci: str, codec: str, unit: bytes) -> None:
    content = packed(codec, unit, 300)
    assert len(content) < 2**20
    before = peak_kb()
    answer = sent(ci, content, name="rows.jsonl.gz")
    assert answer.status_code == 422
    assert answer.json()["code"] in ("not_jsonl", "unfolds_too_far")
    assert peak_kb() - before < 50_000
    assert [path.name for path in settings.WORK_DIR.iterdir()] == []


@pytest.mark.slow
@pytest.mark.threat("D16")
def test_a_row_that_takes_all_memory_ends_the_child_alone(ci: str, tmp_path: Path) -> None:
    content = one_endless_row(tmp_path / "bomb.parquet")
    made = peak_kb()
    problem(sent(ci, content), 422, "too_costly")
    assert peak_kb() - made < 50_000
    assert [path.name for path in settings.WORK_DIR.iterdir()] == []


@pytest.mark.threat("D16")
@pytest.mark.slow
def test_millions_of_bad_rows_are_not_all_looked_at(ci: str, tmp_path: Path) -> None:
    path = tmp_path / "nulls.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": pyarrow.nulls(50_000_000, pyarrow.string())}), path)
    refusal = problem(sent(ci, path.read_bytes()), 422, "broken_lines")
    assert "100,000 lines have faults" in refusal["detail"]
    assert len(refusal["errors"]) == 100


@pytest.mark.threat("D16")
@pytest.mark.slow
def test_a_large_text_is_read_by_a_child_too(ci: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded_scan, "SHORT_BYTES", 0)
    monkeypatch.setattr(bounded_scan, "TURN_S", 0)
    content = "".join(json.dumps(row) + "\n" for row in rows(40)).encode()
    answer = sent(ci, content, name="rows.jsonl")
    assert (answer.status_code, answer.json()["rows"]) == (201, 40)
    broken = problem(sent(ci, content + b"{\n", name="rows.jsonl"), 422, "broken_lines")
    assert broken["errors"][0]["field"] == "file.41"
    # Only a child waits for its turn.
    with bounded_scan.turns, bounded_scan.turns:
        problem(sent(ci, content), 503, "unavailable")


@pytest.mark.threat("D16")
def test_no_more_children_than_two_at_once(ci: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded_scan, "TURN_S", 0)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows(30)), tmp_path / "good.parquet")
    content = (tmp_path / "good.parquet").read_bytes()
    with bounded_scan.turns, bounded_scan.turns:
        problem(sent(ci, content), 503, "unavailable")
    assert sent(ci, content).status_code == 201


def peak_kb() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
