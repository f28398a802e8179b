"""Test modules stand alone: what they share comes from conftest.py files and from builders."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
SILENCED = re.compile(r"noqa:[^#\n]*F(401|811)")


def modules(root: Path) -> Iterator[tuple[str, str, ast.Module]]:
    """Name, text and tree of every module below the folder of tests."""
    for path in sorted(root.rglob("*.py")):
        text = path.read_text()
        yield ".".join(("tests", *path.relative_to(root).with_suffix("").parts)), text, ast.parse(text)


def imports(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Module and name of each import; a module as a whole has no name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.module or "", alias.name) for alias in node.names)


def fixtures(tree: ast.Module) -> set[str]:
    """Return the names of the fixtures that the module defines."""
    return {
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for decorator in node.decorator_list
        if re.search(r"\bfixture\b", ast.unparse(decorator))
    }


def faults(root: Path) -> list[str]:
    """Return `module: what is wrong` for each import of a test module or a fixture, and for each silenced one."""
    known = list(modules(root))
    defined = {name: fixtures(tree) for name, _, tree in known}
    wrong = []
    for module, text, tree in known:
        for target, name in imports(tree):
            parts = [*target.split("."), name]
            if parts[0] == "tests" and any(part.startswith("test_") for part in parts):
                wrong.append(f"{module}: imports {target} {name}".rstrip())
            elif name in defined.get(target, ()):
                wrong.append(f"{module}: imports the fixture {name}")
        wrong += [f"{module}: {match[0]}" for match in SILENCED.finditer(text)]
    return wrong


@pytest.mark.slow
def test_none_imports_another_or_a_fixture() -> None:
    assert faults(TESTS) == []


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("from tests.api.test_walk import CALLS", "imports tests.api.test_walk CALLS"),
        ("from tests.api import test_walk", "imports tests.api test_walk"),
        ("import tests.api.test_walk", "imports tests.api.test_walk"),
        ("from tests.web import site", "imports the fixture site"),
        ("import os  # no" + "qa: F401 - a fixture", "no" + "qa: F401"),
    ],
)
def test_a_module_that_leans_on_another_is_found(tmp_path: Path, line: str, fault: str) -> None:
    (tmp_path / "web.py").write_text("import pytest\n\n\n@pytest.fixture\ndef site() -> str:\n    return ''\n")
    (tmp_path / "test_one.py").write_text(f"{line}\n")
    assert faults(tmp_path) == [f"tests.test_one: {fault}"]
