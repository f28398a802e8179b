"""The scans of `make lint`: a finding fails, and what was not checked is said."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def audit() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / ".ci/audit_packages.py"))


WEAK = {"name": "old", "version": "1", "vulns": [{"id": "PYSEC-1", "fix_versions": ["2"]}]}
GOOD = {"name": "new", "version": "3", "vulns": []}
UNKNOWN = {"name": "ours", "skip_reason": "Dependency not found"}


def test_a_known_weakness_fails_and_is_named(audit: dict[str, Any]) -> None:
    code, lines = audit["verdict"]({"dependencies": [WEAK, GOOD]}, 2)
    assert code == 1
    assert lines[0] == "old 1: PYSEC-1, mended in 2"


@pytest.mark.parametrize(
    ("answer", "fragment"),
    [(None, "7 packages went unchecked"), ({"dependencies": [GOOD, UNKNOWN]}, "1 packages went unchecked")],
)
def test_what_was_not_checked_is_counted(audit: dict[str, Any], answer: Any, fragment: str) -> None:
    code, lines = audit["verdict"](answer, 7)
    assert code == 0
    assert fragment in "\n".join(lines)


def test_the_scan_of_our_code_fails_on_a_finding(tmp_path: Path) -> None:
    bad = tmp_path / "bad.py"
    bad.write_text("import pickle\n\npickle.loads(open('x', 'rb').read())\n")
    command = [sys.executable, "-m", "bandit", "-q", "-c", str(ROOT / "pyproject.toml"), str(bad)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 1
    assert "B301" in done.stdout
