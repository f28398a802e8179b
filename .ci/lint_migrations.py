"""Hold new migrations to the rule that the release before can work on their schema.

`lint_migrations.py` starts a Postgres of its own and checks, with django-migration-linter, each migration from those in
SINCE on: expand first, contract a release later. Ends with 1 if one of them takes away or demands what an earlier
release does not know.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# The first migration of each app that is held to the rule.
SINCE = {"registry": "0037", "training": "0026", "accounts": "0011", "audit": "0008", "webhooks": "0003", "api": "0004"}
# A lock that lasts: reported, and for the reviewer to judge by the size of the table.
JUDGED_BY_PEOPLE = ["CREATE_INDEX", "CREATE_INDEX_EXCLUSIVE"]


def faults(since: dict[str, str]) -> list[str]:
    """The migrations from `since` on that an earlier release cannot work beside, over the connection `owner`."""
    from django_migration_linter import MigrationLinter

    options = {"no_cache": True, "no_output": True, "exclude_migration_tests": JUDGED_BY_PEOPLE}
    linter = MigrationLinter(str(ROOT), database="owner", **options)
    faulty = []
    for (app, name), migration in sorted(linter.migration_loader.disk_migrations.items()):
        if app in since and name >= since[app]:
            linter.reset_counters()
            linter.lint_migration(migration)
            if linter.has_errors:
                faulty.append(f"{app}.{name}: an earlier release cannot work beside it: expand first, contract later.")
    return faulty


def main() -> int:
    sys.path.insert(0, str(ROOT))
    home = Path(tempfile.mkdtemp(prefix="lint-migrations-", dir="/tmp"))
    home.chmod(0o711)
    os.environ |= {"ADAPTERHUB_HOME": str(home), "DJANGO_SETTINGS_MODULE": "adapterhub.settings"}
    import django

    from adapterhub.embedded.postgres import EmbeddedPostgres

    with EmbeddedPostgres(home, {"fsync": "off"}):
        django.setup()
        broken = faults(SINCE)
        django.db.connections.close_all()
    sys.stderr.write("".join(f"{line}\n" for line in broken))
    return int(bool(broken))


if __name__ == "__main__":
    sys.exit(main())
