"""A person's choices for the reading of a file."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Choices:
    """`mapping`: our column -> the file's; `encoding`: empty for UTF-8; `escape` control tokens in prompts."""

    mapping: dict[str, str] = field(default_factory=dict)
    encoding: str = ""
    escape: bool = False
