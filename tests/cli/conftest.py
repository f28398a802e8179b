from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.command import Command


@pytest.fixture
def command(site: str, ci: str, tmp_path: Path) -> Iterator[Command]:
    runs = Command(site, ci, tmp_path)
    yield runs
    runs.end()
