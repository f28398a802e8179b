"""One of a thing is written in the singular: on every page, in every message and in every command."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.template import Context, Template

from adapterhub.core.counts import counted

ROOT = Path(__file__).parents[1]
NOUNS = (
    "adapters|aliases|alarms|analyses|approvals|arms|artifacts|attempts|bytes|characters|checkpoints|clusters|codes|"
    "conditions|datasets|days|deliveries|devices|documents|engines|entries|errors|events|faults|features|fields|files|"
    "grants|hours|items|lines|members|minutes|models|modules|pages|parameters|parts|people|persons|points|positions|"
    "projects|prompts|ranks|records|replicas|requests|rollouts|rows|runs|samples|seconds|sequences|settings|signatures|"
    "slots|steps|texts|tokens|tries|users|versions|votes|windows"
)
# A word or two may stand between the number and its noun: "2 more users".
COUNTED = re.compile(rf"^ (?:[\w-]+ )?(?:{NOUNS})\b")
# Pure packages cannot import it, the engine's messages are vLLM's own, and the demo's numbers are in the hundreds.
LEFT_OUT = ("training/lm", "training/tars", "training/recipes", "adapterhub/demo", "serving_client")
# Expressions that are names of what they hold, or limits far above 1.
NEVER_ONE = re.compile(r"^[A-Z_]+$|^(self\.)?(most|longest)(_bytes)?$|^self\.level$|^len\(text\)$|^variant$|^counted\(")


@pytest.mark.parametrize(
    ("number", "noun", "text"),
    [
        (1, "row", "1 row"),
        (0, "row", "0 rows"),
        (1234, "held-out row", "1,234 held-out rows"),
        (2, "alias", "2 aliases"),
        (2, "analysis", "2 analyses"),
        (3, "query", "3 queries"),
        (2, "day", "2 days"),
        (2, "person", "2 people"),
        (0.5, "request a second,requests a second", "0.5 requests a second"),
        (1.0, "request a second,requests a second", "1 request a second"),
        (None, "row", "an unknown number of rows"),
    ],
)
def test_one_is_singular(number: float, noun: str, text: str) -> None:
    written = Template("{% load adapterhub %}{{ number|counted:noun }}").render(
        Context({"number": number, "noun": noun})
    )
    assert written == text
    if number is not None:
        assert counted(number, *noun.split(",")) == text


def test_every_template_counts_in_one_way() -> None:
    plain = re.compile(r"\{\{ [^{}]+ \}\}(?:</strong>)?\s+(?:[\w-]+ )?(?:" + NOUNS + r")\b")
    faults = [
        f"{path.relative_to(ROOT)}: {hit[0]}"
        for path in sorted((ROOT / "templates").rglob("*.html"))
        for hit in plain.finditer(path.read_text())
        if "|counted:" not in hit[0] and "|default" not in hit[0] and not re.search(r"\.(name|label|title)\b", hit[0])
    ]
    assert faults == []


def numbers_before_nouns(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield the line and the expression of each `{number} nouns` in an f-string."""
    for text in ast.walk(tree):
        if not isinstance(text, ast.JoinedStr):
            continue
        for part, after in zip(text.values, text.values[1:], strict=False):
            is_counted = isinstance(after, ast.Constant) and COUNTED.match(str(after.value))
            if isinstance(part, ast.FormattedValue) and is_counted:
                yield part.lineno, ast.unparse(part.value)


def test_every_message_counts_in_one_way() -> None:
    files = [
        path
        for package in ("adapterhub", "registry", "training")
        for path in sorted((ROOT / package).rglob("*.py"))
        if not str(path.relative_to(ROOT)).startswith(LEFT_OUT) and "migrations" not in path.parts
    ]
    faults = [
        f"{path.relative_to(ROOT)}:{line}: {expression}"
        for path in files
        for line, expression in numbers_before_nouns(ast.parse(path.read_text()))
        if not NEVER_ONE.search(expression)
    ]
    assert faults == []
