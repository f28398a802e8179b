"""How easily one finds one's way in the product's code: prints each number beside its limit; exit 1 when one is broken.

python .ci/house.py
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("adapterhub", "registry", "training", "serving_client")
# Words that hide what a name holds.
VAGUE = {"asked", "found", "held", "kept", "look", "looked", "looks", "lot", "said", "shown", "told", "worth"}
FMT_SKIP = re.compile(r"#\s*fmt:\s*(skip|off)")
QUESTION = re.compile(r"(What|Whether|Who|Where|Which|How)\b")


@dataclass(frozen=True)
class Measure:
    """A number of the code, and the most that is allowed."""

    label: str
    value: float
    limit: float
    place: str = ""

    @property
    def is_broken(self) -> bool:
        return self.value > self.limit

    def __str__(self) -> str:
        verdict = "BROKEN" if self.is_broken else "ok"
        return f"{verdict:6} {self.value:6g}  {self.label} (limit {self.limit:g}) {self.place}".rstrip()


def main() -> int:
    measures = list(measured())
    sys.stdout.write("\n".join(map(str, measures)) + "\n")
    return int(any(measure.is_broken for measure in measures))


def measured() -> Iterator[Measure]:
    trees = [ast.parse(path.read_text()) for path in sources()]
    lengths = [node.end_lineno - node.lineno + 1 for tree in trees for node in functions(tree)]
    folder, count = max(folders().items(), key=lambda item: item[1])
    template, width = max(template_lines(), key=lambda item: item[1])
    looped = circles()
    yield Measure("modules in the largest folder, without __init__", count, 20, folder)
    yield Measure("packages with a circle of imports below them", len(looped), 0, ", ".join(looped))
    yield Measure("lines of the median function", median(lengths), 8)
    yield Measure("lines of the function at the 90th percentile", quantiles(lengths, n=10)[-1], 30)
    yield Measure("docstrings that open with a question word", sum(map(questions, trees)), 0)
    texts = [path.read_text() for path in tracked()]
    yield Measure("statements with `fmt: skip`, in all files", sum(len(FMT_SKIP.findall(text)) for text in texts), 0)
    vague = [name for text in texts for name in bound(ast.parse(text)) if name in VAGUE]
    yield Measure("names that hide what they hold, in all files", len(vague), 0, ", ".join(sorted(set(vague))))
    yield Measure("letters of the longest template line", width, 120, template)


def sources() -> Iterator[Path]:
    """Every module of the product but the migrations."""
    for package in PACKAGES:
        yield from (path for path in sorted((ROOT / package).rglob("*.py")) if "migrations" not in path.parts)


def folders() -> dict[str, int]:
    """Folder -> its modules, `__init__` aside."""
    counts: dict[str, int] = {}
    for path in sources():
        if path.stem != "__init__":
            folder = str(path.parent.relative_to(ROOT))
            counts[folder] = counts.get(folder, 0) + 1
    return counts


def circles() -> list[str]:
    """The packages whose parts import each other in a circle, as import-linter finds them."""
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache", "--no-logo", "--contract", "circles"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)  # noqa: S603 - our own arguments
    if not re.search(r"Contracts: \d kept", done.stdout):
        raise SystemExit(f"lint-imports gave no verdict:\n{done.stdout}{done.stderr}")
    return re.findall(r"^No cycles are allowed in (\S+)\.$", done.stdout, re.M)


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def questions(tree: ast.Module) -> int:
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    texts = (ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, documented))
    return sum(bool(QUESTION.match(text)) for text in texts)


def tracked() -> list[Path]:
    """Every Python file of the repository, tests and benchmarks too."""
    done = subprocess.run(["git", "ls-files", "-z", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True)  # noqa: S607
    return [path for name in done.stdout.split("\0")[:-1] if (path := ROOT / name).is_file()]


def bound(tree: ast.Module) -> Iterator[str]:
    """The names of functions, arguments and variables."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id


def template_lines() -> Iterator[tuple[str, int]]:
    """Template -> the letters of its longest line."""
    for path in sorted((ROOT / "templates").rglob("*.html")):
        yield str(path.relative_to(ROOT)), max(map(len, path.read_text().splitlines()), default=0)


if __name__ == "__main__":
    sys.exit(main())
