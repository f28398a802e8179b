"""A machine that lacks a tool: its tests are left out before anything starts, and end the session if required."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tools import TOOLS, check_required, missing_tools, program, requires

ROOT = Path(__file__).parent.parent


def skipped(reason: str) -> pytest.TestReport:
    return pytest.TestReport(
        "tests/test_a.py::test_a",
        ("tests/test_a.py", 1, "test_a"),
        {},
        "skipped",
        ("tests/test_a.py", 1, f"Skipped: {reason}"),
        "setup",
    )


@pytest.mark.slow
def test_without_the_tools_the_tests_are_left_out_and_the_last_lines_say_how_to_get_them(tmp_path: Path) -> None:
    """In a process of its own, whose PATH leads nowhere."""
    options = ("-q", "--setup-show", "-p", "no:cacheprovider", "-o", "addopts=--import-mode=importlib")
    command = [sys.executable, "-m", "pytest", *options, "tests/test_front.py", "tests/test_compose_proxy.py"]
    environ = {**os.environ, "PATH": str(tmp_path), "ADAPTERHUB_REQUIRE": ""}
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    lines = done.stdout.splitlines()
    count = lines[-1].split(" skipped")[0]
    assert f"Left out for want of nginx: {count} tests. Get it with: apt-get install nginx" in lines
    assert "Get it with: apt-get install openssl" in done.stdout
    assert "SETUP" not in done.stdout, "no fixture was started"


@pytest.mark.parametrize(
    ("required", "sentence"),
    [
        ("nginx,openssl", "ADAPTERHUB_REQUIRE names nginx, which is missing. Get it with: apt-get install nginx"),
        ("nginks", "ADAPTERHUB_REQUIRE names nginks; it knows axe, browser, "),
    ],
    ids=["missing", "unknown"],
)
def test_a_required_tool_that_is_missing_or_unknown_ends_the_session(
    required: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pytestconfig: pytest.Config
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("ADAPTERHUB_REQUIRE", required)
    with pytest.raises(pytest.UsageError, match=f"^{sentence}"):
        check_required(pytestconfig)


def test_a_server_is_found_in_the_sbin_beside_a_bin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nginx = tmp_path / "sbin" / "nginx"
    nginx.parent.mkdir()
    nginx.touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert (program("nothing", "nginx"), program("nothing")) == (str(nginx), "")


def test_skips_are_counted_by_tool() -> None:
    nginx, openssl = TOOLS["nginx"], TOOLS["openssl"]
    reports = [skipped(nginx.reason), skipped(f"{nginx.reason}; {openssl.reason}"), skipped("another reason")]
    assert missing_tools(reports) == {nginx: 2, openssl: 1}


def test_only_tools_of_the_table_can_be_asked_for() -> None:
    with pytest.raises(AssertionError, match="has no nginks"):
        requires("nginx", "nginks")
