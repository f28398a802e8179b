"""Log lines of the child processes: a size-limited file for each, and the terminal with a coloured prefix."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.text import Text

FILE_BYTES = 10 * 1024 * 1024
PREFIX_CHARACTERS = 11
COLOURS = ("cyan", "green", "magenta", "yellow", "blue", "bright_cyan", "bright_green", "bright_magenta")

LineSink = Callable[[str], None]


class LogFile:
    """A log file that is renamed to NAME.1 at 10 MiB, in place of an earlier NAME.1."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, line: str) -> None:
        """Append the line; one that cannot be written, as on a full disk, is dropped."""
        try:
            self._append(line)
        except OSError:
            return  # a full disk must not block the process that talks

    def _append(self, line: str) -> None:
        if self.path.exists() and self.path.stat().st_size > FILE_BYTES:
            self.path.replace(self.path.with_name(f"{self.path.name}.1"))
        with self.path.open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")


class PatientConsole(Console):
    """A console that stops printing when its reader has closed the pipe; rich would end the program."""

    def on_broken_pipe(self) -> None:
        """Stop printing; the process continues."""
        self.quiet = True


class Terminal:
    """A printer of lines on stderr, each with the name of its process before it.

    Stdout is for the `ready` line alone.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._console = PatientConsole(
            stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True, quiet=quiet
        )
        self._colours = itertools.cycle(COLOURS)

    def sink(self, name: str) -> LineSink:
        """Return a function that prints a line of the named process."""
        prefix = Text(f"{name:<{PREFIX_CHARACTERS}} | ", style=next(self._colours))
        return lambda line: self._console.print(prefix + Text.from_ansi(line))

    def say(self, line: str) -> None:
        """Print a line of the supervisor itself."""
        self._console.print(Text(f"{'adapterhub':<{PREFIX_CHARACTERS}} | {line}", style="bold"))
