"""The documents name only what exists."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from adapterhub.environment import TABLE

ROOT = Path(__file__).resolve().parents[1]
# By tests, and by the plugin in the processes of vLLM.
READ_ELSEWHERE = {"ADAPTERHUB_REQUIRE", "ADAPTERHUB_TESTS_SHARED", "ADAPTERHUB_VLLM_UNMEASURED"}
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
by_name = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)


def section_of(document: str, heading: str) -> str:
    return (ROOT / document).read_text().partition(f"## {heading}\n")[2].partition("\n## ")[0]


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
    assert [f"{path}::{name}" for path, name in named if f"def {name}(" not in (ROOT / path).read_text()] == []


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


def test_ten_questions_are_answered_by_the_name_of_a_file() -> None:
    section = section_of("CONTRIBUTING.md", "Where is what")
    rows = re.findall(r"^\| (.+\?) \| `([\w/.]+)` \|$", section, re.M)
    assert len({question for question, _ in rows}) == 10
    assert len({file for _, file in rows}) == 10
    assert [file for _, file in rows if not (ROOT / file).is_file()] == []


def test_the_code_map_has_every_room() -> None:
    folders = {
        path.parent
        for package in ("adapterhub", "registry", "training", "serving_client")
        for path in (ROOT / package).rglob("*.py")
        if not {"migrations", "management"} & set(path.parts)
    }
    rooms = {folder.relative_to(ROOT) for folder in folders if len(folder.relative_to(ROOT).parts) == 2}
    code_map = section_of("ARCHITECTURE.md", "Code map")
    assert [str(room) for room in sorted(rooms) if f"`{room}/`" not in code_map] == []


def messages_of_the_product() -> str:
    """Return the sources of what speaks at a start, each text in one piece and its values as dots."""
    files = [*(ROOT / "adapterhub").rglob("*.py"), *(ROOT / "serving_client").rglob("*.py")]
    sources = "\n".join(path.read_text() for path in (*files, ROOT / "Makefile", ROOT / ".ci/lock.py"))
    return re.sub(r"\{[^{}]*\}", "…", re.sub(r"\"\s*\n\s*f?\"", "", sources))


def test_troubleshooting_names_real_messages() -> None:
    rows = re.findall(r"^\| `([^`]+)` \| ", section_of("README.md", "When it does not start or answer"), re.M)
    assert len(rows) >= 10
    text = messages_of_the_product()
    parts = [part for message in rows for part in re.split(r"\s*…\s*", message) if len(part) > 3]
    assert [part for part in parts if part not in text] == []


@pytest.mark.parametrize("name", ["architecture", "production"])
def test_a_picture_is_that_of_its_text(name: str) -> None:
    draw = runpy.run_path(str(ROOT / ".ci/draw_architecture.py"))
    source = ROOT / f"docs/pictures/{name}.txt"
    assert draw["drawn"](source.read_text()) == source.with_suffix(".svg").read_text()
    with pytest.raises(ValueError, match="neither a box nor an arrow"):
        draw["drawn"]("a line of prose")
