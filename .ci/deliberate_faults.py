"""Deliberate faults, each applied alone to a copy of the tree: do the tests that ought to notice it fail?

    python .ci/deliberate_faults.py [NAME ...] [-- PYTEST ARGUMENTS]

runs all faults of deliberate_faults.toml or the named ones, and prints a line for each: caught, by which test, or NOT
caught. Arguments after `--` choose among the tests, `-m "not slow"` for example; a choice that leaves no test catches
nothing. Exit 0: all were caught, 1: one was not, 2: the list or a name is wrong.

A test that fails without a fault, too, catches nothing: `--unfaulted` tells.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIST = Path(__file__).with_suffix(".toml")
# Of one fault's tests: a fault may make them wait for ever.
LIMIT_S = 1800
FAILED = re.compile(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", re.MULTILINE)
TESTS_FAILED, COLLECTION_FAILED = 1, 2  # exit codes of pytest


@dataclass(frozen=True)
class Fault:
    """`old`, which stands once in `file`, becomes `new`; `breaks` says what users suffer, `tests` who notices first."""

    name: str
    file: str
    old: str
    new: str
    breaks: str
    tests: tuple[str, ...]


@dataclass(frozen=True)
class Run:
    """What pytest said: its exit code, the first test that failed, and its last line."""

    code: int
    failed: str
    last_line: str

    @property
    def has_caught(self) -> bool:
        return self.code in (TESTS_FAILED, COLLECTION_FAILED) and bool(self.failed)


def listed(path: Path = LIST) -> list[Fault]:
    content = tomllib.loads(path.read_text(encoding="utf-8"))
    return [Fault(**{**fault, "tests": tuple(fault["tests"])}) for fault in content["fault"]]


def problems(fault: Fault, root: Path) -> Iterator[str]:
    """Why the fault cannot be judged in this tree."""
    file = root / fault.file
    count = file.read_text(encoding="utf-8").count(fault.old) if file.is_file() else 0
    if count != 1:
        yield f"{fault.name}: its old text stands {count} times in {fault.file}, not once: write it anew."
    for test in fault.tests:
        if not (root / test.partition("::")[0]).is_file():
            yield f"{fault.name}: there is no {test}: name the tests that notice it."


@contextmanager
def copy_of(root: Path) -> Iterator[Path]:
    """The tracked files as they are now, in a folder that other users may read, as those who serve Postgres must."""
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, text=True, check=True)  # noqa: S607
    with tempfile.TemporaryDirectory(prefix="fault-") as folder:
        copy = Path(folder)
        copy.chmod(0o755)
        for name in filter(None, tracked.stdout.split("\0")):
            if (root / name).is_file():
                (copy / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(root / name, copy / name, follow_symlinks=False)
        yield copy


def apply(fault: Fault, root: Path) -> None:
    file = root / fault.file
    file.write_text(file.read_text(encoding="utf-8").replace(fault.old, fault.new), encoding="utf-8")


def run_tests(root: Path, tests: Sequence[str], extra: Sequence[str]) -> Run:
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests, *extra]
    # The processes that tests start must import the copy too, not what is installed.
    environment = {**os.environ, "PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(  # noqa: S603 - our own interpreter
            command,
            cwd=root,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
            timeout=LIMIT_S,
        )
    except subprocess.TimeoutExpired:
        return Run(-1, "", f"the tests had not ended after {LIMIT_S} s")
    failed = FAILED.search(done.stdout)
    lines = done.stdout.strip().splitlines() or ["pytest said nothing"]
    return Run(done.returncode, failed[1] if failed else "", lines[-1])


def judge(fault: Fault, extra: Sequence[str], root: Path = ROOT) -> tuple[bool, str]:
    """Whether the fault was caught, and the line that says so."""
    with copy_of(root) as copy:
        apply(fault, copy)
        run = run_tests(copy, fault.tests, extra)
    if run.has_caught:
        return True, f"caught      {fault.name}: {run.failed}"
    return False, f"NOT caught  {fault.name}: {fault.breaks} ({run.last_line})"


def run_unfaulted(faults: Sequence[Fault], extra: Sequence[str], root: Path = ROOT) -> tuple[bool, str]:
    """Whether the tests of these faults pass without any, and the line that says so."""
    with copy_of(root) as copy:
        run = run_tests(copy, list(dict.fromkeys(test for fault in faults for test in fault.tests)), extra)
    culprit = f"{run.failed} fails, " if run.failed else ""
    return run.code == 0, f"without a fault: {culprit}{run.last_line}"


def chosen(names: Sequence[str], faults: list[Fault]) -> list[Fault]:
    """Those with these names, or all. Raises ValueError with the unknown ones."""
    if unknown := set(names) - {fault.name for fault in faults}:
        raise ValueError(f"There is no fault {', '.join(sorted(unknown))} in {LIST.name}.")
    return [fault for fault in faults if not names or fault.name in names]


def main(arguments: Sequence[str]) -> int:
    own_arguments, extra = divided(arguments)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--verify", action="store_true", help="only look whether each fault still fits the tree")
    parser.add_argument("--unfaulted", action="store_true", help="run the same tests without a fault")
    options = parser.parse_args(own_arguments)
    try:
        faults = chosen(options.names, listed())
    except ValueError as error:
        parser.error(str(error))
    if wrong := [problem for fault in faults for problem in problems(fault, ROOT)]:
        sys.stderr.write("".join(f"{line}\n" for line in wrong))
        return 2
    if options.verify:
        return 0
    if options.unfaulted:
        return print_outcomes([run_unfaulted(faults, extra)])
    return print_outcomes(judge(fault, extra) for fault in faults)


def divided(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """What stands before `--` and what after it."""
    separated = [*arguments, "--"]
    place = separated.index("--")
    return separated[:place], separated[place + 1 : -1]


def print_outcomes(outcomes: Iterable[tuple[bool, str]]) -> int:
    """Print each line as it comes; the exit code."""
    are_good = []
    for is_good, line in outcomes:
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()
        are_good.append(is_good)
    return int(not all(are_good))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
