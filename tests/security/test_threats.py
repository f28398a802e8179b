"""The table of threats is that of the tests, and no row of it lacks one."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
THREATS = runpy.run_path(str(ROOT / ".ci/threats.py"))


def test_the_table_is_fresh() -> None:
    """`python .ci/threats.py` writes it."""
    document = (ROOT / "docs/threats.md").read_text()
    rows = THREATS["table"](THREATS["listed"](ROOT), THREATS["marked"](ROOT))
    assert THREATS["with_table"](document, rows) == document


def test_every_threat_has_its_test_and_every_mark_its_threat() -> None:
    assert THREATS["faults"](THREATS["listed"](ROOT), THREATS["marked"](ROOT)) == []


@pytest.mark.parametrize(
    ("mark", "fault"),
    [
        ("", "A1 has no test: mark one with @pytest.mark.threat('A1')."),
        ('@pytest.mark.threat("A1", "Z9")\n', "tests/test_one.py::test_one: threat 'Z9' is not in"),
    ],
)
def test_a_gap_is_named(tmp_path: Path, mark: str, fault: str) -> None:
    (tmp_path / "tests/security").mkdir(parents=True)
    (tmp_path / "tests/security/threats.toml").write_text('[A1]\nthreat = "a"\nanswer = "b"\n')
    (tmp_path / "tests/test_one.py").write_text(f"{mark}def test_one() -> None: ...\n")
    [sentence] = THREATS["faults"](THREATS["listed"](tmp_path), THREATS["marked"](tmp_path))
    assert sentence.startswith(fault)
