"""The routers' reports to the control plane: the outcome of each answer, and samples of answers for the judge. Pure.

The keys under which they wait in Valkey are in `protocol`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Protocol, TypeVar

import orjson


class Fielded(Protocol):
    """The protocol of dataclasses, for type hints."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


Record = TypeVar("Record", bound=Fielded)


@dataclass(frozen=True, kw_only=True)
class MeasuredAnswer:
    """Measurements of one answer; times in milliseconds.

    None stands for a time that was not measured and a check of the text that has no rule. `ttft_ms` is the time to the
    first byte of a stream. `empty`, `refusal` and `format_failure` are True if the text is empty, is a refusal or has a
    wrong form; `differs`, of a candidate's answer to a mirrored request alone, if the stable version's text is another.
    `tokens_estimated` is True if the router estimated the token counts, as the engine sent none.
    """

    status: int
    ttft_ms: float | None
    total_ms: float
    prompt_tokens: int
    completion_tokens: int
    empty: bool | None = None
    refusal: bool | None = None
    format_failure: bool | None = None
    differs: bool | None = None
    tokens_estimated: bool = False


@dataclass(frozen=True, kw_only=True)
class Outcome(MeasuredAnswer):
    """A router's report of one answer: `at` in epoch seconds, `unit` (session or user, or None) as sha256 hex.

    `arm` is candidate, control, stable, shadow, or none without a rollout; `sticky` says that the unit gets it again.
    `cache` is hit, miss, or bypass for an answer that the cache does not concern. `counted` is False for units that a
    list or the holdout excludes from the statistics. An answer in arm `shadow` went to no caller; `mirrored` describes
    the stable version's answer to the same request. `cold` says that the request waited for the version to be loaded.
    """

    response_id: str
    at: float
    project: str
    alias: str | None
    version: str
    arm: str
    sticky: bool
    unit: str | None
    cache: str = "bypass"
    counted: bool = True
    cold: bool = False
    mirrored: MeasuredAnswer | None = None

    @classmethod
    def all_from_json(cls, text: str | bytes) -> list[Outcome]:
        """Parse the reports of a stream entry; fields added by a newer router are ignored.

        A router of an earlier release sends one report in place of a list. Raises ValueError if one cannot be read.
        """
        content = orjson.loads(text)
        return [_outcome(raw) for raw in (content if isinstance(content, list) else [content])]


@dataclass(frozen=True)
class Sample:
    """A sampled answer with its question, for the judge; `unit` as sha256 hex, `at` in epoch seconds."""

    response_id: str
    rollout: str
    arm: str
    unit: str
    at: float
    question: Any
    answer: str

    def to_json(self) -> bytes:
        """Return the sample as JSON, to be encrypted."""
        return orjson.dumps(self)

    @classmethod
    def from_json(cls, text: bytes) -> Sample:
        """Parse a sample; fields added by a newer router are ignored.

        Raises ValueError if it is not JSON or lacks a field.
        """
        return _record(cls, orjson.loads(text))


def hash_of(unit: str) -> str:
    """Return the sha256, in hexadecimal, of a unit (a session or user), which may be a person's name.

    Tables, outcomes and samples hold this hash only.
    """
    return hashlib.sha256(unit.encode()).hexdigest()


def _outcome(raw: dict[str, Any]) -> Outcome:
    outcome = _record(Outcome, raw)
    mirrored = raw.get("mirrored")
    return replace(outcome, mirrored=_record(MeasuredAnswer, mirrored)) if mirrored else outcome


def _record(kind: type[Record], raw: dict[str, Any]) -> Record:
    """Build a dataclass from the fields that it knows. Raises ValueError if one is missing."""
    try:
        return kind(**{field.name: raw[field.name] for field in fields(kind) if field.name in raw})
    except (TypeError, KeyError) as error:
        raise ValueError(f"The text is not a {kind.__name__}: {error}.") from error
