"""A person's choices for reading a dataset's file."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Choices:
    """A person's choices for reading a dataset's file.

    `mapping` maps our columns to the file's, `encoding` is "" for UTF-8, and `escape` makes control tokens in prompts
    harmless.
    """

    mapping: dict[str, str] = field(default_factory=dict)
    encoding: str = ""
    escape: bool = False
