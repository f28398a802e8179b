"""Static files that are found once in a process of tests."""

from __future__ import annotations

from typing import Any

from whitenoise.middleware import WhiteNoiseMiddleware

FILES: dict[str, Any] = {}
find = WhiteNoiseMiddleware.add_files_from_finders


def found_once(middleware: Any) -> None:
    """Find the files for the first instance; each test client makes one, which took a tenth of all tests' time."""
    if not FILES:
        find(middleware)
        FILES.update(middleware.files)
    middleware.files.update(FILES)


def find_once() -> None:
    WhiteNoiseMiddleware.add_files_from_finders = found_once
