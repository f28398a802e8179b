"""A person's choices for the reading of a file."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Choices:
    """A person's choices for the reading of a file: `mapping` of our column to the file's, `encoding` ("" for UTF-8).

    `escape` makes control tokens in prompts harmless.
    """

    mapping: dict[str, str] = field(default_factory=dict)
    encoding: str = ""
    escape: bool = False
