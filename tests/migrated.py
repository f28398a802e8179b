"""A migrated cluster of Postgres, made once a run and copied for each worker and each product that a test starts.

`ADAPTERHUB_TESTS_SHARED` names a folder that keeps it for later runs, until a migration or a locked package changes.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from adapterhub.embedded.layout import Layout
from adapterhub.embedded.postgres import EmbeddedPostgres

ROOT = Path(__file__).parents[1]
# Nothing of a test has to outlive the machine. `synchronous_commit` stays on: tests kill servers.
FORGETFUL = {"fsync": "off", "full_page_writes": "off"}


def place_cluster(home: Path) -> None:
    """Copy the migrated cluster into a data folder that has no database yet, and create the folder's layout."""
    layout = Layout(home)
    layout.create()
    if not layout.postgres_data.exists():
        subprocess.run(["/bin/cp", "-a", str(migrated_cluster()), str(layout.postgres_data)], check=True)


def migrated_cluster() -> Path:
    """Return the folder of the cluster. Whoever comes first makes it; others wait meanwhile."""
    shared = Path(os.environ["ADAPTERHUB_TESTS_SHARED"])
    cluster = shared / f"cluster-{digest_of_migrations()}"
    with (shared / "cluster.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not cluster.exists():
            with tempfile.TemporaryDirectory(prefix="hub-tests-", dir="/tmp") as folder:
                Path(folder).chmod(0o711)
                migrate(Path(folder))
                subprocess.run(["/bin/cp", "-a", str(Layout(Path(folder)).postgres_data), f"{cluster}.new"], check=True)
            Path(f"{cluster}.new").rename(cluster)
    return cluster


def digest_of_migrations() -> str:
    files = sorted([*ROOT.glob("*/migrations/*.py"), *ROOT.glob("*/*/migrations/*.py"), *ROOT.glob("requirements/*")])
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


def migrate(home: Path) -> None:
    """Make a database in the data folder, migrate it, and stop its server."""
    with EmbeddedPostgres(home, FORGETFUL):
        environ = os.environ | {"ADAPTERHUB_HOME": str(home), "DJANGO_SETTINGS_MODULE": "adapterhub.settings"}
        command = [sys.executable, "manage.py", "migrate", "--verbosity", "0"]
        subprocess.run(command, cwd=ROOT, env=environ, check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    migrated_cluster()
