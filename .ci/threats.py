"""The table of docs/threats.md, written from tests/security/threats.toml and the tests that bear the mark of a threat.

    python .ci/threats.py            # writes the table
    python .ci/threats.py --check    # exit 1 when it is stale

A threat without a test and a mark of an unknown threat end both with exit 2.
"""

from __future__ import annotations

import ast
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = "docs/threats.md"
HEAD = "| id | threat | answer | proved by |\n|---|---|---|---|\n"
Proofs = dict[str, list[str]]


def main() -> int:
    threats, proofs = listed(ROOT), marked(ROOT)
    if wrong := faults(threats, proofs):
        sys.stderr.write("\n".join(wrong) + "\n")
        return 2
    document = ROOT / DOCUMENT
    fresh = with_table(document.read_text(), table(threats, proofs))
    if "--check" in sys.argv:
        return int(fresh != document.read_text())
    document.write_text(fresh)
    return 0


def listed(root: Path) -> dict[str, dict[str, str]]:
    """Return id -> threat and answer."""
    return tomllib.loads((root / "tests/security/threats.toml").read_text())


def marked(root: Path) -> Proofs:
    """Return id -> the tests that bear its mark, as `path::name`."""
    proofs: Proofs = {}
    for path in sorted(root.glob("tests/**/test_*.py")):
        for name, threat in marks(ast.parse(path.read_text())):
            proofs.setdefault(threat, []).append(f"{path.relative_to(root)}::{name}")
    return proofs


def marks(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Yield name of the test and id of the threat for each argument of a mark."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for decorator in node.decorator_list:
                if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "pytest.mark.threat":
                    yield from ((node.name, ast.literal_eval(argument)) for argument in decorator.args)


def faults(threats: dict[str, dict[str, str]], proofs: Proofs) -> list[str]:
    """Return a sentence for each threat without a test and for each mark of a threat that is not listed."""
    without = [f"{threat} has no test: mark one with @pytest.mark.threat({threat!r})." for threat in threats]
    return [line for threat, line in zip(threats, without, strict=True) if threat not in proofs] + [
        f"{', '.join(tests)}: threat {threat!r} is not in tests/security/threats.toml."
        for threat, tests in proofs.items()
        if threat not in threats
    ]


def table(threats: dict[str, dict[str, str]], proofs: Proofs) -> str:
    """Return the rows in the order of their ids, whatever their order in the list."""
    order = sorted(threats, key=lambda threat: (threat[0], int(threat[1:])))
    return HEAD + "".join(row(threat, threats[threat], proofs[threat]) for threat in order)


def row(threat: str, entry: dict[str, str], tests: list[str]) -> str:
    return f"| {threat} | {entry['threat']} | {entry['answer']} | {', '.join(f'`{test}`' for test in tests)} |\n"


def with_table(document: str, rows: str) -> str:
    """Replace the document's one table."""
    lines = document.splitlines(keepends=True)
    at = [number for number, line in enumerate(lines) if line.startswith("|")]
    return "".join([*lines[: at[0]], rows, *lines[at[-1] + 1 :]])


if __name__ == "__main__":
    sys.exit(main())
