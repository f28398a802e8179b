"""The documents name only what exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from adapterhub.environment import TABLE

ROOT = Path(__file__).resolve().parents[1]
# By tests, and by the plugin in the processes of vLLM.
READ_ELSEWHERE = {"ADAPTERHUB_REQUIRE", "ADAPTERHUB_VLLM_UNMEASURED"}
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
by_name = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)


@by_name
def test_every_link_leads_somewhere(document: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", document.read_text())
    local = [target for target in targets if not re.match(r"[a-z]+:", target)]
    assert [target for target in local if not (document.parent / target).exists()] == []


@by_name
def test_every_path_in_code_exists(document: Path) -> None:
    """A path is a code span below one of our folders; templates of paths hold braces or dots."""
    folders = r"(?:adapterhub|registry|training|serving_client|templates|tests|docs|benchmarks)"
    paths = re.findall(rf"`({folders}/[\w./-]*)`", document.read_text())
    assert [path for path in paths if not (ROOT / path).exists()] == []


@by_name
def test_every_make_target_exists(document: Path) -> None:
    targets = re.findall(r"(?:`|^ {4})make ([\w-]+)", document.read_text(), re.M)
    known = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
    assert set(targets) <= set(known)


@by_name
def test_every_variable_is_in_the_table(document: Path) -> None:
    names = re.findall(r"`((?:ADAPTERHUB|DATABASE|S3)_[A-Z_]+)(?:=[^`]*)?`", document.read_text())
    assert {name.removesuffix("_FILE") for name in names} <= set(TABLE) | READ_ELSEWHERE


@by_name
def test_every_test_that_is_named_exists(document: Path) -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", document.read_text())
    assert [f"{path}::{name}" for path, name in named if f"\ndef {name}(" not in (ROOT / path).read_text()] == []


@pytest.mark.parametrize("document", ["threats.md", "faults.md"])
def test_every_row_has_its_test(document: str) -> None:
    rows = [line for line in (ROOT / "docs" / document).read_text().splitlines() if line.startswith("| ")][1:]
    assert len(rows) >= 25
    assert [row for row in rows if "::test_" not in row] == []


def test_the_settings_are_documented_as_they_are() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \| (.*?) \|$", (ROOT / "docs/settings.md").read_text(), re.M)
    defaults = {name: default.strip().strip("`") for name, default, _ in rows}
    assert defaults == {setting.name: setting.default for setting in TABLE.values()}
    meanings = {name: meaning for name, _, meaning in rows}
    assert [name for name, setting in TABLE.items() if not meanings[name].startswith(setting.meaning)] == []
    assert [name for name, setting in TABLE.items() if setting.secret != (f"`{name}_FILE`" in meanings[name])] == []
