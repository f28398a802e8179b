"""docs/errors.md names every code that the product can answer with, at its status, and none that it cannot."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from django.core.management import call_command
from rest_framework import exceptions

from adapterhub.artifacts import StoreAway
from adapterhub.core import errors
from training.models.dataset import BrokenLines

ROOT = Path(__file__).parent.parent.parent
FAMILY = [BrokenLines, StoreAway, *(kind for kind in vars(errors).values() if isinstance(kind, type))]
CLASSES = {kind.__name__: kind for kind in FAMILY if issubclass(kind, errors.DomainError)}
# What the framework refuses by itself below /api/.
FRAMEWORK = (
    exceptions.ParseError,
    exceptions.AuthenticationFailed,
    exceptions.NotAuthenticated,
    exceptions.NotFound,
    exceptions.MethodNotAllowed,
    exceptions.NotAcceptable,
    exceptions.PermissionDenied,
    exceptions.UnsupportedMediaType,
)
Code = tuple[str, int]


def text(node: ast.expr) -> str:
    """A part that is computed becomes <>."""
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "<>" for part in node.values)
    assert isinstance(node, ast.Constant), f"a code is written where it is raised, not {ast.unparse(node)}"
    return str(node.value)


def raised(tree: ast.Module) -> Iterator[Code]:
    """The codes of all domain errors that a module makes."""
    for call in ast.walk(tree):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in CLASSES:
            kind = CLASSES[call.func.id]
            own = [text(keyword.value) for keyword in call.keywords if keyword.arg == "code"]
            yield (own[0] if own else kind.code, kind.status)


def in_code() -> set[Code]:
    codes = {(kind.default_code, kind.status_code) for kind in FRAMEWORK} | {("internal_error", 500)}
    for package in ("adapterhub", "registry", "training"):
        for path in (ROOT / package).rglob("*.py"):
            codes |= set(raised(ast.parse(path.read_text())))
    return codes


def in_document() -> set[Code]:
    rows = re.findall(r"^\| `([^`]+)` \| (\d+) \|", (ROOT / "docs/errors.md").read_text(), re.M)
    return {(re.sub("<[a-z]+>", "<>", code), int(status)) for code, status in rows}


def test_the_list_of_codes_is_complete_and_has_no_other() -> None:
    assert in_document() ^ in_code() == set()


def test_a_code_that_is_computed_shows_as_such() -> None:
    tree = ast.parse('raise Invalid("no", field=name, code=f"bad_{name}")\nraise Conflict("taken")')
    assert list(raised(tree)) == [("bad_<>", 422), ("conflict", 409)]


def test_no_class_of_errors_is_missed() -> None:
    call_command("check")
    known = {kind.__name__ for kind in every(errors.DomainError)} - {"DomainError"}
    assert known <= set(CLASSES)


def every(kind: type) -> Iterator[type]:
    for child in kind.__subclasses__():
        yield child
        yield from every(child)
