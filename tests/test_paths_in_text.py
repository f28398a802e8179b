"""Every dotted path and every file path in a text leads somewhere: strings, comments, commands, documents."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OURS = ("adapterhub", "registry", "training", "serving_client", "tests", "benchmarks")
PACKAGE = "|".join(OURS)
DOTTED = re.compile(rf"(?<![\w./@:{{-])((?:{PACKAGE})(?:\.\w+)+)(?::(\w+))?(?![\w(/-])")
FILE = re.compile(
    rf"(?<![\w./-])((?:{PACKAGE}|docs|templates|deploy|\.ci)/[\w./-]+"
    r"\.(?:py|md|html|css|js|json|jsonl|toml|txt|ya?ml|svg|png|webp))\b"
)
RUN = re.compile(rf"""-m["']?,?\s+["']?((?:{PACKAGE})(?:\.\w+)*)""")
WRITTEN_BY_US = (".py", ".md", ".toml", ".yml", ".yaml", ".sh")
# Files that are named like modules.
SUFFIXES = ("css", "env", "html", "js", "json", "jsonl", "lock", "md", "py", "svg", "toml", "txt", "yaml", "yml")
# Names with dots that are no paths: tags of a run in MLflow, attributes of a span, locks, the domains of hashes.
NAMES = re.compile(
    r"adapterhub\.(?:adapter|digest|discovery|outcomes|reason|reconcile|request_id|response|run|version"
    r"|(?:audit\.(?:checkpoint\.|manifest\.)?|version\.|webhook\.)v1)"
)
# What a test names because it is not there, or makes for itself.
ABSENT = {
    "benchmarks/wrong.py",
    "registry/wrong.py",
    "tests.test_one",
    "tests/test_one.py",
    "tests/test_a.py",
    "tests/test_wrong.py",
    "training.models.User",
}
# What a command or a test writes; the results that are committed are read by other tests.
WRITTEN = ("benchmarks/results/", "docs/ci/rows.jsonl")


def texts() -> Iterator[Path]:
    """Every text that people wrote: code, configuration, documents."""
    for folder in (*OURS, "docs", ".ci", ".github", "deploy"):
        yield from (path for path in sorted((ROOT / folder).rglob("*")) if is_text(path))
    yield from (path for path in sorted(ROOT.iterdir()) if is_text(path))


def is_text(path: Path) -> bool:
    generated = {"__pycache__", "results", "migrations", "screenshots", "static"}
    known = path.suffix in WRITTEN_BY_US or path.name in ("Makefile", "Dockerfile", "run")
    is_own = path != Path(__file__) and not generated.intersection(path.relative_to(ROOT).parts)
    return known and is_own and path.is_file()


def words(path: Path) -> str:
    """The text; of a module its strings and comments, since imports and names are checked when it is loaded."""
    text = path.read_text()
    if path.name == "CHANGELOG.md":
        # What a thing was called before is history.
        return re.sub(r"was `[^`]*`", "", text)
    if path.suffix != ".py":
        return text
    kinds = {tokenize.STRING, tokenize.COMMENT, getattr(tokenize, "FSTRING_MIDDLE", -1)}
    return "\n".join(
        token.string for token in tokenize.generate_tokens(io.StringIO(text).readline) if token.type in kinds
    )


@cache
def home_of(module: str) -> Path | None:
    """The file of a module or package of ours, or the folder of one without __init__."""
    place = ROOT.joinpath(*module.split("."))
    candidates = (place.with_suffix(".py"), place / "__init__.py", place)
    return next((path for path in candidates if path.exists()), None)


@cache
def names_in(path: Path) -> dict[str, ast.AST]:
    return named(ast.parse(path.read_text()).body) if path.suffix == ".py" else {}


def named(body: list[ast.stmt]) -> dict[str, ast.AST]:
    """What a module or class binds, also in the branches of its statements."""
    statement_of: dict[str, ast.AST] = {}
    for statement in body:
        if isinstance(statement, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            statement_of[statement.name] = statement
        elif isinstance(statement, ast.Import | ast.ImportFrom):
            statement_of |= {(alias.asname or alias.name).split(".")[0]: statement for alias in statement.names}
        else:
            stored = (node for node in ast.walk(statement) if isinstance(node, ast.Name | ast.alias))
            statement_of |= {node.id if isinstance(node, ast.Name) else node.name: statement for node in stored}
    return statement_of


def leads_somewhere(dotted: str) -> bool:
    """True for a module, and for a name in a module or in a class of it."""
    parts = dotted.split(".")
    for end in range(len(parts), 0, -1):
        if home := home_of(".".join(parts[:end])):
            return holds(home, parts[end:])
    return False


def holds(home: Path, rest: list[str]) -> bool:
    names = names_in(home)
    for index, name in enumerate(rest):
        if name not in names:
            return False
        node = names[name]
        if not isinstance(node, ast.ClassDef):
            # What a value has is not to be seen here.
            return index == len(rest) - 1 or not isinstance(node, ast.FunctionDef)
        names = named(node.body)
    return True


def is_no_path(dotted: str) -> bool:
    last = dotted.rpartition(".")[2]
    is_name = NAMES.fullmatch(dotted) or last.startswith("__") or last.isupper() or dotted in ABSENT
    return last in SUFFIXES or bool(is_name) or is_model(dotted)


def is_model(dotted: str) -> bool:
    """As Django names a model: the app, and the class in any case."""
    app, _, name = dotted.partition(".")
    home = home_of(f"{app}.models")
    return home is not None and name.lower() in {known.lower() for known in names_in(home)}


def astray(path: Path) -> list[str]:
    """The dotted paths and file paths in a text that lead nowhere."""
    text = words(path)
    dotted = {".".join(filter(None, match)) for match in DOTTED.findall(text)}
    lost = [name for name in dotted if not leads_somewhere(name) and not is_no_path(name)]
    files = {name for name in FILE.findall(text) if not name.startswith(WRITTEN) and name not in ABSENT}
    return sorted([*lost, *(name for name in files if not exists(name, path))])


def exists(name: str, text: Path) -> bool:
    """From the root, below the templates, or beside the text."""
    return any((folder / name).exists() for folder in (ROOT, ROOT / "templates", text.parent))


def test_every_path_in_a_text_leads_somewhere() -> None:
    astray_of = {str(path.relative_to(ROOT)): astray(path) for path in texts()}
    assert len(astray_of) > 500
    assert {path: lost for path, lost in astray_of.items() if lost} == {}


@pytest.mark.slow
def test_every_module_that_is_run_as_a_program_is_one() -> None:
    commands = {name for path in texts() for name in RUN.findall(words(path)) if not name.endswith(".NAME")}
    assert len(commands) >= 15
    assert [name for name in sorted(commands) if not is_program(name)] == []


def is_program(module: str) -> bool:
    home = home_of(f"{module}.__main__") or home_of(module)
    return home is not None and (home.stem == "__main__" or '__name__ == "__main__"' in home.read_text())


@pytest.mark.parametrize(
    "text",
    [
        '"""As `registry/intake.py` does."""',
        'TARGET = "registry.intake.fetch_base_model"',
        'COMMAND = ["-m", "registry.check_child"]',
        "# training.tars.analysis.no_such_name",
        'ROLE = "adapterhub.accounts.models.Membership.NoSuch"',
    ],
)
def test_a_path_that_leads_nowhere_is_found(tmp_path: Path, text: str) -> None:
    file = tmp_path / "module.py"
    file.write_text(f"{text}\n")
    assert len(astray(file)) == 1
