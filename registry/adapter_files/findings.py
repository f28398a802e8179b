"""Findings about an adapter's files: what is wrong or worth knowing, where, why, and how to fix it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from adapterhub.core.errors import Invalid

# An answer names this many faults; more of them would not be read.
LONGEST = 40


class Level(StrEnum):
    """The severity of a finding: a fault rejects the adapter, a notice is stored with the version."""

    FAULT = "fault"
    NOTICE = "notice"


@dataclass(frozen=True)
class Finding:
    """One fault or notice on an adapter's files.

    `code` is its kind in an API response, `field` the file and its field, `cause` what was found, and `route` what to
    do, which may be empty.
    """

    level: Level
    code: str
    field: str
    cause: str
    route: str = ""

    @property
    def is_fault(self) -> bool:
        """Return True if the finding rejects the adapter."""
        return self.level is Level.FAULT

    @property
    def message(self) -> str:
        """Return cause and route as one text."""
        return f"{self.cause} {self.route}".strip()

    def as_dict(self) -> dict[str, str]:
        """Return the finding as a dict for JSON, with the keys level, code, field, cause and route."""
        names = ("code", "field", "cause", "route")
        return {"level": str(self.level), **{name: getattr(self, name) for name in names}}


def fault(code: str, field: str, cause: str, route: str = "") -> Finding:
    """Return a finding of level FAULT, without raising anything."""
    return Finding(Level.FAULT, code, field, cause, route)


def notice(code: str, field: str, cause: str, route: str = "") -> Finding:
    """Return a finding of level NOTICE."""
    return Finding(Level.NOTICE, code, field, cause, route)


def faults_of(findings: Sequence[Finding]) -> list[Finding]:
    """Return the findings that reject the adapter, without the notices."""
    return [finding for finding in findings if finding.is_fault]


def refusal(faults: Sequence[Finding]) -> Invalid:
    """Return, without raising it, the error that rejects an adapter.

    Its text is the first fault; its `errors` lists up to LONGEST faults. `faults` must not be empty.
    """
    first = faults[0]
    rest = f" {len(faults) - 1} more: see `errors`." if len(faults) > 1 else ""
    error = Invalid(f"{first.message}{rest}", field=first.field, code="bad_adapter")
    error.errors = [
        {"field": finding.field, "code": finding.code, "message": finding.cause, "route": finding.route}
        for finding in faults[:LONGEST]
    ]
    return error


def listed(names: Sequence[str], count: int = 3) -> str:
    """Return the first `count` names joined by commas, and how many others there are."""
    rest = f" and {len(names) - count:,} more" if len(names) > count else ""
    return f"{', '.join(map(printable, names[:count]))}{rest}"


def printable(name: str) -> str:
    """Return the first 200 characters of a text that an uploader chose, as printable ASCII; all else is escaped.

    Control characters would change a terminal's state, and Postgres stores no NUL.
    """
    text = name[:200].encode("ascii", "backslashreplace").decode()
    return "".join(character if character.isprintable() else f"\\x{ord(character):02x}" for character in text)
