"""A real Postgres and a real Valkey for the session, and the cast: alice leads, bob looks on, charlie is outside."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HOME = Path(tempfile.mkdtemp(prefix="hub-tests-", dir="/tmp"))
HOME.chmod(0o711)
# Django reads its settings once: the folder of this process must be known before.
os.environ |= {
    "DJANGO_SETTINGS_MODULE": "adapterhub.settings",
    "ADAPTERHUB_HOME": str(HOME),
    "ADAPTERHUB_LEASE_S": "3",
    "ADAPTERHUB_HEARTBEAT_S": "1",
    "ADAPTERHUB_CANCEL_GRACE_S": "5",
    "ADAPTERHUB_ENGINE_HOSTS": "127.0.0.1,.engines.internal",
    # Tests call as fast as they can; those of the throttle set its rates.
    "ADAPTERHUB_API_REQUESTS_PER_S": "0",
    "ADAPTERHUB_STRANGER_REQUESTS_PER_S": "0",
    # Several processes of tests share the cores; one thread each is faster, and the same sums come out everywhere.
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}
# Of the controller and its workers, which inherit it.
os.environ.setdefault("ADAPTERHUB_TESTS_SHARED", str(HOME))

# The tests start hundreds of processes: what one compiles the others read.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# Of two million objects none but the newest are garbage: looking at all of them took a sixth of the collection.
gc.set_threshold(50_000, 50, 100)

# A shell that starts us in the background has these ignored, and what we start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

import django  # noqa: E402
import hypothesis  # noqa: E402
import pytest  # noqa: E402
from django.conf import settings  # noqa: E402
from django.db import connections  # noqa: E402

from adapterhub.embedded.postgres import EmbeddedPostgres  # noqa: E402
from adapterhub.embedded.valkey import EmbeddedValkey  # noqa: E402
from tests.databases import copy_template, own_copy, own_database, owner_executes, use_database  # noqa: E402
from tests.migrated import FORGETFUL, ROOT, migrated_cluster, place_cluster  # noqa: E402
from tests.static_files import find_once  # noqa: E402

# The fixtures of the cast import models.
django.setup()
settings.PASSWORD_HASHERS = ["tests.passwords.HashedOnce"]
find_once()
# A busy machine is no fault of the code that an example runs.
hypothesis.settings.register_profile("adapterhub", deadline=None)
hypothesis.settings.load_profile("adapterhub")


MOST_WORKERS = 4
MIGRATION = pytest.StashKey["subprocess.Popen[bytes]"]()
EVERY_TEST = pytest.StashKey[list[pytest.Item]]()


def pytest_configure(config: pytest.Config) -> None:
    """Keep the settings from the workers of pytest-xdist until each has a data folder of its own.

    A worker inherits the environment, and with this variable pytest-django would read the settings before this module.
    The database is migrated while the workers start and collect.
    """
    if config.getoption("dist") != "no":
        environ = dict(os.environ)
        del os.environ["DJANGO_SETTINGS_MODULE"]
        config.stash[MIGRATION] = subprocess.Popen([sys.executable, "-m", "tests.migrated"], cwd=ROOT, env=environ)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Wait in each worker for the migrated database, before the time of a test runs.

    What was collected lives to the end of the run: the garbage collector need not look at it again.
    """
    gc.freeze()
    if hasattr(session.config, "workerinput"):
        migrated_cluster()


def pytest_unconfigure(config: pytest.Config) -> None:
    if migration := config.stash.get(MIGRATION, None):
        migration.terminate()
        migration.wait()
    shutil.rmtree(HOME, ignore_errors=True)


def pytest_xdist_auto_num_workers() -> int:
    """Return one worker more than cores, since tests wait a third of their time; each takes 1 GB."""
    return min(MOST_WORKERS, len(os.sched_getaffinity(0)) + 1)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Remember all that was collected, before `-m` takes out what another command runs."""
    config.stash[EVERY_TEST] = list(items)


@pytest.fixture(scope="session")
def postgres() -> Iterator[EmbeddedPostgres]:
    place_cluster(HOME)
    with EmbeddedPostgres(HOME, FORGETFUL) as server:
        yield server


@pytest.fixture(scope="session")
def django_db_setup(postgres: EmbeddedPostgres, django_db_blocker: Any) -> Iterator[None]:
    """Copy the migrated template; tests use copies of it, with every trigger, as the application role."""
    with django_db_blocker.unblock():
        # The first connection of each alias asks its own database for types; later ones remember them.
        connections["owner"].ensure_connection()
        connections.close_all()
        copy_template("adapterhub_tests")
        use_database("adapterhub_tests")
        yield
        connections.close_all()


@pytest.fixture
def fresh_database(django_db_setup: None, django_db_blocker: Any, valkey: EmbeddedValkey) -> Iterator[str]:
    """A database of its own, for tests that commit or use threads: no trigger stands in the way of cleaning up."""
    with django_db_blocker.unblock(), own_copy() as name:
        yield name


@pytest.fixture
def empty_database(django_db_setup: None, django_db_blocker: Any, valkey: EmbeddedValkey) -> Iterator[str]:
    """A database without tables, as an installation makes it before its first migration."""

    def create(name: str) -> None:
        owner_executes(f'CREATE DATABASE "{name}"')

    with django_db_blocker.unblock(), own_database(create) as name:
        yield name


@pytest.fixture(scope="session")
def valkey_server() -> Iterator[EmbeddedValkey]:
    with EmbeddedValkey(HOME) as server:
        yield server


@pytest.fixture
def valkey(valkey_server: EmbeddedValkey) -> EmbeddedValkey:
    """The session's Valkey, emptied."""
    from registry.serving.valkey import valkey as connect

    with connect() as client:
        client.flushall()
    return valkey_server


# The package itself comes first, so that failed assertions of all its modules show their values.
pytest_plugins = [
    "tests.builders",
    "tests.builders.cast",
    "tests.builders.fleet",
    "tests.s3",
    "tests.tools",
    "tests.web",
]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak", action="store_true", help="soak tests at their full length")
