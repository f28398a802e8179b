"""The paths and URLs of an embedded installation, all computed from its data folder before anything starts."""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from adapterhub.embedded.exceptions import StartError
from adapterhub.embedded.os_account import Account, unprivileged_account

SOCKET_PATH_BYTES = 107
POSTGRES_SOCKET = ".s.PGSQL.5432"
VALKEY_SOCKET = "valkey.sock"
SIGNER_SOCKET = "signer.sock"
DATABASE = "adapterhub"
ADMIN_ROLE = "adapterhub_admin"
OWNER_ROLE = "adapterhub_owner"
APP_ROLE = "adapterhub_app"
SIGNER_ROLE = "adapterhub_signer"
# The roles that this user may take; nobody else may take any.
ROLES = (ADMIN_ROLE, OWNER_ROLE, APP_ROLE, SIGNER_ROLE)
SYSTEM_DATA = Path("/var/lib/adapterhub")


@dataclass(frozen=True)
class Layout:
    """The folders below ADAPTERHUB_HOME (an absolute path)."""

    home: Path

    @property
    def run(self) -> Path:
        """Return the folder of sockets and locks."""
        return self.home / "run"

    @property
    def valkey(self) -> Path:
        """Return Valkey's data folder."""
        return self.home / "valkey"

    @property
    def artifacts(self) -> Path:
        """Return the folder of the artifact store."""
        return self.home / "artifacts"

    @property
    def models(self) -> Path:
        """Return the folder of base models."""
        return self.home / "models"

    @property
    def logs(self) -> Path:
        """Return the folder of logs."""
        return self.home / "logs"

    @property
    def work(self) -> Path:
        """Return the folder in which jobs work."""
        return self.home / "work"

    @property
    def router(self) -> Path:
        """Return the folder of the router's snapshot and spool."""
        return self.home / "router"

    @property
    def postgres(self) -> Path:
        """Return the folder of Postgres: `pg` in the data folder, or a folder in SYSTEM_DATA that `pg` links to.

        It is in SYSTEM_DATA if this process is root and the account of Postgres cannot enter the data folder.
        """
        inside = self.home / "pg"
        if inside.exists():
            return inside.resolve()
        return inside if os.geteuid() != 0 or _others_can_pass(self.home.parent) else self._system_folder()

    @property
    def postgres_data(self) -> Path:
        """Return Postgres' data folder."""
        return self.postgres / "data"

    @property
    def postgres_sockets(self) -> Path:
        """Return the folder of Postgres' socket, whose path is short enough for Unix sockets."""
        return self._short_enough(self.postgres / "run", POSTGRES_SOCKET)

    @property
    def valkey_socket(self) -> Path:
        """Return the path of Valkey's socket, in a folder whose path is short enough for Unix sockets."""
        return self._short_enough(self.run, VALKEY_SOCKET) / VALKEY_SOCKET

    @property
    def signer_socket(self) -> Path:
        """Return the path of the signer's socket, in a folder whose path is short enough for Unix sockets."""
        return self._short_enough(self.run, SIGNER_SOCKET) / SIGNER_SOCKET

    @property
    def account(self) -> Account | None:
        """Return the account that runs Postgres; None for the user of this process."""
        return unprivileged_account(self.postgres)

    def create(self) -> None:
        """Create the missing folders, each private to its user.

        Raises StartError when they cannot be used by this user.
        """
        try:
            self._create()
        except PermissionError as refused:
            raise StartError(
                f"The data folder {self.home} cannot be used ({refused.strerror}: {refused.filename}): "
                "start AdapterHub as the user who owns it, or set ADAPTERHUB_HOME to another folder."
            ) from refused

    def _create(self) -> None:
        self.home.mkdir(parents=True, exist_ok=True)
        # Started by root, Postgres runs as another account, which must traverse this folder but not list it.
        self.home.chmod(0o711 if os.geteuid() == 0 else 0o700)
        for folder in (self.run, self.valkey, self.artifacts, self.models, self.logs, self.work, self.router):
            _private(folder)
        _private(self.valkey_socket.parent)
        _private(self.signer_socket.parent)
        self._create_postgres()

    def _create_postgres(self) -> None:
        account, folder = self.account, self.postgres
        folder.parent.mkdir(parents=True, exist_ok=True)
        _private(folder, account)
        _private(self.postgres_sockets, account)
        if folder.parent == SYSTEM_DATA and not (self.home / "pg").is_symlink():
            (self.home / "pg").symlink_to(folder)

    def _system_folder(self) -> Path:
        return SYSTEM_DATA / self._digest("postgres")

    def _short_enough(self, folder: Path, socket: str) -> Path:
        if len(os.fsencode(folder / socket)) <= SOCKET_PATH_BYTES:
            return folder
        return Path(tempfile.gettempdir()) / f"adapterhub-{self._digest(socket)}"

    def _digest(self, purpose: str) -> str:
        return hashlib.sha256(f"{self.home}|{os.getuid()}|{purpose}".encode()).hexdigest()[:16]


def database_url(home: Path, database: str = DATABASE) -> str:
    """Return the URL of the embedded Postgres for the application role."""
    return _database_url(home, APP_ROLE, database)


def database_owner_url(home: Path, database: str = DATABASE) -> str:
    """Return the URL of the embedded Postgres for the role that owns the tables, which runs migrations."""
    return _database_url(home, OWNER_ROLE, database)


def database_signer_url(home: Path, database: str = DATABASE) -> str:
    """Return the URL of the embedded Postgres for the signer's role."""
    return _database_url(home, SIGNER_ROLE, database)


def database_admin_url(home: Path, database: str = "postgres") -> str:
    """Return the URL of the embedded Postgres for its superuser."""
    return _database_url(home, ADMIN_ROLE, database)


def redis_url(home: Path) -> str:
    """Return the URL of the embedded Valkey."""
    return f"unix://{quote(str(Layout(home).valkey_socket))}"


def _database_url(home: Path, role: str, database: str) -> str:
    return f"postgres://{role}@{quote(str(Layout(home).postgres_sockets), safe='')}/{database}"


def _others_can_pass(folder: Path) -> bool:
    return all(part.stat().st_mode & stat.S_IXOTH for part in (folder, *folder.parents) if part.exists())


def _private(folder: Path, account: Account | None = None) -> None:
    """Create a folder that only this user can enter, and the group of the account that runs Postgres.

    Raises StartError for one that another user created first, which anyone can do in /tmp.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    allowed = {os.geteuid()} | ({account.uid} if account else set())
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid not in allowed:
        raise StartError(f"{folder} belongs to another user: remove it, or set ADAPTERHUB_HOME to another folder.")
    os.chown(folder, os.geteuid(), account.gid if account else -1)
    folder.chmod(0o770 if account else 0o700)
