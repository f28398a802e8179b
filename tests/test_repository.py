"""The files of a hosted repository: its workflow, its forms, its releases."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.version import Version

from tests.cli.command import Command

ROOT = Path(__file__).parent.parent
GITHUB = ROOT / ".github"
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
CHANGELOG = (ROOT / "CHANGELOG.md").read_text()
CHANGES = ("Added", "Changed", "Deprecated", "Removed", "Fixed", "Security")


def read_yaml(path: Path) -> dict[Any, Any]:
    return dict(yaml.safe_load(path.read_text()))


def test_the_workflow_does_what_the_machine_of_everybody_does() -> None:
    workflow = read_yaml(GITHUB / "workflows/ci.yml")
    (job,) = workflow["jobs"].values()
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    # YAML reads the key `on` as true.
    assert set(workflow[True]) == {"pull_request", "push"}
    python = re.fullmatch(r"python:(\d+\.\d+)-\w+", job["container"])
    image = re.search(r"^FROM python:(\d+\.\d+)", (ROOT / "Dockerfile").read_text(), re.M)
    assert python
    assert image
    assert python[1] == image[1]
    # .ci/run looks for tools that npm brings, which a Debian image of Python has not.
    assert any("setup-node" in step.get("uses", "") for step in job["steps"])


def test_the_forms_are_whole_and_name_files_that_exist() -> None:
    forms = sorted((GITHUB / "ISSUE_TEMPLATE").glob("*.yml"))
    assert [form.stem for form in forms] == ["bug", "feature"]
    for form in map(read_yaml, forms):
        fields = [field for field in form["body"] if field["type"] != "markdown"]
        assert {"name", "description", "body"} <= set(form)
        assert all(field["id"] and field["attributes"]["label"] for field in fields)
        assert len({field["id"] for field in fields}) == len(fields)
    texts = [path.read_text() for path in (*GITHUB.rglob("*.yml"), *GITHUB.rglob("*.md"))]
    files = {path for text in texts for path in re.findall(r"`([\w.]+(?:/[\w.]+)*(?:\.md|\.py|/))`", text)}
    assert {"SECURITY.md", "README.md", "CHANGELOG.md", "docs/settings.md"} <= files
    assert [path for path in files if not (ROOT / path).exists()] == []


def test_the_changelog_lists_releases_newest_first_by_kind_of_change() -> None:
    headings = re.findall(r"^## (.+)$", CHANGELOG, re.M)
    releases = [re.fullmatch(r"(\d+\.\d+\.\d+) - (\d{4}-\d\d-\d\d)", heading) for heading in headings[1:]]
    assert headings[0] == "Unreleased"
    assert all(releases)
    versions = [(Version(release[1]), release[2]) for release in releases if release]
    assert versions == sorted(versions, reverse=True)
    assert Version(VERSION) >= versions[0][0]
    assert set(re.findall(r"^### (.+)$", CHANGELOG, re.M)) <= set(CHANGES)
    for section in re.split(r"^## .+$", CHANGELOG, flags=re.M)[1:]:
        kinds = re.findall(r"^### (.+)$", section, re.M)
        assert kinds == sorted(set(kinds), key=CHANGES.index)
        assert re.search(r"^(?!###|- |  |$).", section, re.M) is None


def files_with(*pattern: str) -> list[str]:
    command = ["git", "grep", "-l", *pattern]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()


def test_the_version_stands_in_one_place() -> None:
    assert files_with("-F", VERSION, "--", ":!requirements", ":!CHANGELOG.md") == ["pyproject.toml"]
    # The plugin for vLLM is a wheel of its own; a test of it holds its two places together.
    plugin = "serving_client/vllm_plugin/__init__.py"
    assert files_with("-E", r"^_*(VERSION|version)_* *= *[\"'][0-9]+\.", "--", "*.py") == [plugin]


def test_the_command_tells_the_version_of_the_package(tmp_path: Path) -> None:
    command = Command("http://127.0.0.1:9", "", tmp_path)
    assert command("--version").stdout.strip() == importlib.metadata.version("adapterhub")
    assert "The whole life of a LoRA adapter" in command("--help").stdout


VERDICT_MAKEFILE = "test:\n\t@{python} -m pytest -q -p xdist.plugin --rootdir=. tests $(ARGS)\n"
FAILS_ONCE = """
from pathlib import Path

def test_beside_others():
    mark = Path("mark")
    assert mark.exists() or mark.touch()
"""
FAILS = "def test_{number}():\n    assert not {number}\n"
LEAVES = "import os\ndef test_leaves():\n    os._exit(3)\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tests", "status", "words"),
    [
        ([FAILS_ONCE], 0, "Passed only alone, to be mended: "),
        ([FAILS_ONCE, FAILS.format(number=1)], 2, "1 failed, 1 passed"),
        ([FAILS.format(number=number) for number in range(1, 7)], 1, "6 failed"),
        ([FAILS_ONCE, LEAVES], 1, ""),
    ],
    ids=["alone", "always", "many", "broken off"],
)
def test_only_a_few_failures_get_a_second_try_alone(tests: list[str], status: int, words: str, tmp_path: Path) -> None:
    (tmp_path / "Makefile").write_text(VERDICT_MAKEFILE.format(python=sys.executable))
    (tmp_path / "tests").mkdir()
    for number, text in enumerate(tests):
        (tmp_path / "tests" / f"test_{number}.py").write_text(text)
    cache = tmp_path / ".pytest_cache"
    (cache / "v" / "cache").mkdir(parents=True)
    before = {f"former.py::test_{number}": True for number in range(6)}
    (cache / "v" / "cache" / "lastfailed").write_text(json.dumps(before))
    (cache / "d" / "axe-core").mkdir(parents=True)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "MAKE"))}
    done = subprocess.run(
        [ROOT / ".ci" / "verdict", "test"],
        cwd=tmp_path,
        env={**environment, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, words in done.stdout) == (status, True), done.stdout + done.stderr
    assert ("passed only alone" in done.stdout.lower()) is (status == 0)
    # A worker that cleared the cache took this folder from another one that was about to use it.
    assert (cache / "d" / "axe-core").exists()
