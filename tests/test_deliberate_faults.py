"""The list of deliberate faults fits the tree, and what it is judged by tells a fault that is caught from others."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / ".ci/deliberate_faults.py"
MODULE = "def most(numbers):\n    return max(numbers)\n\n\ndef least(numbers):\n    return min(numbers)\n"
TEST = "from module import most\n\n\ndef test_most():\n    assert most([1, 2]) == 2\n"


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(SCRIPT))


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small project of its own. Without pytest's plugins its tests start in a tenth of the time."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    (tmp_path / "module.py").write_text(MODULE)
    (tmp_path / "test_module.py").write_text(TEST)
    for command in (["init", "-q"], ["add", "."]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)  # noqa: S607
    return tmp_path


@pytest.fixture
def fault(script: dict[str, Any]) -> Any:
    return script["Fault"]("slip", "module.py", "max(numbers)", "min(numbers)", "It is wrong.", ("test_module.py",))


def test_each_fault_still_fits_the_tree() -> None:
    done = subprocess.run([sys.executable, SCRIPT, "--verify"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_twenty_modules_of_all_packages_have_a_fault_each(script: dict[str, Any]) -> None:
    faults = script["listed"]()
    assert len(faults) == len({fault.file for fault in faults}) == len({fault.name for fault in faults}) == 20
    packages = {fault.file.partition("/")[0] for fault in faults}
    assert packages == {"adapterhub", "registry", "training", "serving_client"}


def test_a_fault_is_caught_by_the_test_that_fails(script: dict[str, Any], fault: Any, tree: Path) -> None:
    assert script["judge"](fault, [], tree) == (True, "caught      slip: test_module.py::test_most")
    assert script["run_unfaulted"]([fault], [], tree)[0]
    assert (tree / "module.py").read_text() == MODULE, "only the copy is changed"


@pytest.mark.parametrize(
    ("old", "new", "extra", "fragment"),
    [
        ("min(numbers)", "max(numbers)", [], "1 passed"),
        ("max(numbers)", "min(numbers)", ["-k", "least"], "1 deselected"),
    ],
    ids=["another function", "no test is chosen"],
)
def test_a_fault_that_no_test_sees_is_not_caught(
    script: dict[str, Any], tree: Path, old: str, new: str, extra: list[str], fragment: str
) -> None:
    unseen = script["Fault"]("slip", "module.py", old, new, "It is wrong.", ("test_module.py",))
    is_caught, line = script["judge"](unseen, extra, tree)
    assert not is_caught
    assert line.startswith("NOT caught  slip: It is wrong. (")
    assert fragment in line


@pytest.mark.parametrize(
    ("old", "tests", "fragment"),
    [
        ("numbers", ("test_module.py",), "stands 4 times in module.py"),
        ("sum(numbers)", ("test_module.py",), "stands 0 times in module.py"),
        ("max(numbers)", ("test_gone.py::test_it",), "there is no test_gone.py::test_it"),
    ],
)
def test_a_fault_that_does_not_fit_is_named(
    script: dict[str, Any], tree: Path, old: str, tests: tuple[str, ...], fragment: str
) -> None:
    [problem] = script["problems"](script["Fault"]("slip", "module.py", old, "x", "It is wrong.", tests), tree)
    assert problem.startswith("slip: ")
    assert fragment in problem


def test_an_unknown_name_is_told() -> None:
    done = subprocess.run([sys.executable, SCRIPT, "no-such"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "There is no fault no-such" in done.stderr
