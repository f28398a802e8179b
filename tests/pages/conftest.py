"""The router that pages ask for answers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.fakes.playground_router import PlaygroundRouter, running_playground_router


@pytest.fixture
def router(settings: Any) -> Iterator[type[PlaygroundRouter]]:
    with running_playground_router() as url:
        settings.ROUTER_URL = url
        yield PlaygroundRouter
