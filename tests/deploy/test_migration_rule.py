"""A migration leaves a schema that the release before can work on; tests/test_upgrade_of_product.py runs that one."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LINT = runpy.run_path(str(ROOT / ".ci/lint_migrations.py"))


@pytest.mark.slow
def test_every_new_migration_keeps_the_rule_and_an_old_one_is_seen_to_break_it(fresh_database: str) -> None:
    assert LINT["faults"](LINT["SINCE"]) == []
    # It added columns that an insert of the release before leaves empty.
    broken = LINT["faults"]({"registry": "0032"})
    assert any("0032_replicas_come_and_go: an earlier release cannot work" in line for line in broken)
