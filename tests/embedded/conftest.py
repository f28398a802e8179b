"""A data folder in /tmp: pytest's own folders are closed to the account that root's Postgres runs as."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def home() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="adapterhub-test-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder)
