"""A stage of its own for each test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.fakes.routing import make_table
from tests.fakes.stage import Engine, Router, running_engine, running_router, running_valkey
from tests.fakes.valkey import Valkey


@pytest.fixture
def valkey() -> Iterator[Valkey]:
    with running_valkey() as server:
        yield server


@pytest.fixture
def start_engine() -> Iterator[Callable[..., Engine]]:
    with ExitStack() as stack:
        yield lambda *adapters: stack.enter_context(running_engine(*adapters))


@pytest.fixture
def engine(start_engine: Callable[..., Engine]) -> Engine:
    return start_engine()


@pytest.fixture
def start_router(valkey: Valkey, tmp_path: Path) -> Iterator[Callable[..., Router]]:
    with ExitStack() as stack:
        yield lambda **settings: stack.enter_context(running_router(valkey, tmp_path, **settings))


@pytest.fixture
def router(start_router: Callable[..., Router], engine: Engine) -> Router:
    """A router with a table in which one engine holds everything."""
    started = start_router()
    started.publish(make_table(engine.url))
    return started
