"""Every test belongs to exactly one command of the Makefile, and `make test` keeps nearly all of them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from _pytest.mark.expression import Expression

from tests.conftest import EVERY_TEST

ROOT = Path(__file__).parent.parent
COMMANDS = ("test", "test-slow", "test-vllm")
LEAST_SHARE = 0.9


def marker_expression(command: str) -> Expression:
    """The `-m` of a target of the Makefile."""
    recipe = re.search(rf"^{command}:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert recipe, f"the Makefile has no target {command}"
    selected = re.search(r" pytest .*-m (?:'([^']+)'|(\w+))", recipe[1])
    assert selected, f"make {command} selects by no marker"
    return Expression.compile(selected[1] or selected[2])


def commands_of(item: pytest.Item) -> list[str]:
    markers = {marker.name for marker in item.iter_markers()}
    return [name for name in COMMANDS if marker_expression(name).evaluate(lambda name, **_: name in markers)]


def test_each_test_belongs_to_one_command(pytestconfig: pytest.Config) -> None:
    homeless = {
        item.nodeid: commands_of(item) for item in pytestconfig.stash[EVERY_TEST] if len(commands_of(item)) != 1
    }
    assert homeless == {}


def test_make_test_keeps_nearly_all(pytestconfig: pytest.Config) -> None:
    collected = pytestconfig.stash[EVERY_TEST]
    if pytestconfig.args_source is not pytest.Config.ArgsSource.TESTPATHS:
        pytest.skip("only a part of the tests was collected")
    counted = [item for item in collected if "vllm" not in item.keywords]
    fast = [item for item in counted if commands_of(item) == ["test"]]
    assert len(fast) >= LEAST_SHARE * len(counted)
