from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.command import Command
from tests.e2e.test_browser import site  # noqa: F401 - a fixture


@pytest.fixture
def command(site: str, ci: str, tmp_path: Path) -> Iterator[Command]:  # noqa: F811
    runs = Command(site, ci, tmp_path)
    yield runs
    runs.end()
