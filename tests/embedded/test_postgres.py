from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
from pathlib import Path

import psycopg
import pytest

from adapterhub.embedded import postgres_binaries, service
from adapterhub.embedded.exceptions import StartError
from adapterhub.embedded.layout import Layout, database_admin_url, database_owner_url, database_url
from adapterhub.embedded.postgres import EmbeddedPostgres
from tests.tools import requires
from tests.waiting import wait_until


def _run(url: str, statement: str) -> list[tuple[object, ...]]:
    with psycopg.connect(url, autocommit=True) as session:
        cursor = session.execute(statement)
        return cursor.fetchall() if cursor.description else []


@pytest.mark.slow
def test_the_application_may_use_the_owners_tables_and_nothing_more(home: Path) -> None:
    with EmbeddedPostgres(home):
        owner, app = database_owner_url(home), database_url(home)
        _run(owner, "CREATE TABLE fruit (id serial, name text)")
        _run(app, "INSERT INTO fruit (name) VALUES ('pear')")
        _run(app, "UPDATE fruit SET name = 'plum'")
        assert _run(app, "DELETE FROM fruit RETURNING id, name") == [(1, "plum")]
        for forbidden in ("CREATE TABLE mine ()", "DROP TABLE fruit", "TRUNCATE fruit", "CREATE DATABASE more"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                _run(app, forbidden)
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            _run(owner, "CREATE ROLE more")


@pytest.mark.slow
def test_a_database_that_the_owner_makes_has_the_same_privileges(home: Path) -> None:
    with EmbeddedPostgres(home):
        _run(database_owner_url(home), "CREATE DATABASE test_adapterhub")
        _run(database_owner_url(home, "test_adapterhub"), "CREATE TABLE fruit (id int)")
        assert _run(database_url(home, "test_adapterhub"), "SELECT count(*) FROM fruit") == [(0,)]


@pytest.mark.slow
def test_only_the_admin_is_a_superuser(home: Path) -> None:
    with EmbeddedPostgres(home):
        roles = _run(database_admin_url(home), "SELECT rolname FROM pg_roles WHERE rolsuper")
        assert roles == [("adapterhub_admin",)]
        sockets = Layout(home).postgres_sockets
        assert stat.S_IMODE((sockets / ".s.PGSQL.5432").stat().st_mode) == 0o700


@pytest.mark.slow
def test_committed_rows_outlive_a_killed_postmaster(home: Path) -> None:
    with EmbeddedPostgres(home) as postgres:
        _run(database_owner_url(home), "CREATE TABLE fruit (id int)")
        _run(database_url(home), "INSERT INTO fruit SELECT generate_series(1, 300)")
        os.kill(postgres.pid, signal.SIGKILL)
        wait_until(lambda: not postgres.is_running())
        postgres.start()
        assert _run(database_url(home), "SELECT count(*) FROM fruit") == [(300,)]


@pytest.mark.slow
def test_a_start_that_was_cut_off_in_initdb_leaves_no_trace(home: Path) -> None:
    layout = Layout(home)
    layout.create()
    (layout.postgres / "data.new").mkdir()
    (layout.postgres / "data.new" / "PG_VERSION").write_text("half")
    with EmbeddedPostgres(home):
        assert _run(database_url(home), "SELECT 1") == [(1,)]
    assert not (layout.postgres / "data.new").exists()


@pytest.mark.slow
def test_two_servers_never_share_a_folder(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "LOCK_S", 0.1)
    with EmbeddedPostgres(home), pytest.raises(StartError, match=f"in use by process {os.getpid()}"):
        EmbeddedPostgres(home).start()


@pytest.mark.slow
def test_a_server_that_cannot_start_says_why(home: Path) -> None:
    with EmbeddedPostgres(home):
        pass
    (Layout(home).postgres_data / "PG_VERSION").write_text("9.6\n")
    with pytest.raises(StartError, match=r"Postgres does not start: see .*postgres\.log.*9\.6"):
        EmbeddedPostgres(home).start()


@requires("root")
@pytest.mark.slow
def test_binaries_that_the_account_cannot_read_are_copied_once(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres_binaries, "_can_run", lambda folder, account: False)
    with EmbeddedPostgres(home) as postgres:
        program = Path(f"/proc/{postgres.pid}/exe").resolve()
    copy = next(Layout(home).postgres.glob("install-*"))
    assert program.is_relative_to(copy)
    made_at = copy.stat().st_mtime_ns
    with EmbeddedPostgres(home):
        assert copy.stat().st_mtime_ns == made_at


@pytest.mark.slow
@requires("root")
def test_a_folder_that_root_has_copied_serves_what_it_held(home: Path) -> None:
    with EmbeddedPostgres(home):
        _run(database_owner_url(home), "CREATE TABLE fruit (id int)")
        _run(database_owner_url(home), "INSERT INTO fruit VALUES (7)")
    copy = home.with_name(f"{home.name}-copy")
    subprocess.run(["/bin/cp", "-r", str(home), str(copy)], check=True)
    try:
        assert Layout(copy).postgres_data.stat().st_uid == 0
        with EmbeddedPostgres(copy):
            assert _run(database_url(copy), "SELECT id FROM fruit") == [(7,)]
            assert Layout(copy).postgres_data.stat().st_uid != 0
    finally:
        shutil.rmtree(copy)
