"""The operating system account that runs Postgres, which refuses to run as root."""

from __future__ import annotations

import grp
import os
import pwd
from dataclasses import dataclass
from pathlib import Path

CANDIDATES = ("adapterhub", "nobody")
SHARED = "nobody"
# Groups that no system assigns. Whatever else runs as nobody is in none of them: it reaches no file and no socket.
OWN_GROUPS = range(60_990, 60_900, -1)


@dataclass(frozen=True)
class Account:
    """A user id and a group id."""

    uid: int
    gid: int


def unprivileged_account(folder: Path) -> Account | None:
    """Return the account that runs Postgres with this folder; None if this process is not root.

    An existing database keeps its owner, so that a user added later does not lock it out of its own files. One that
    belongs to root was copied by root; it gets the account of a new one.
    """
    if os.geteuid() != 0:
        return None
    known = {entry.pw_name: entry for entry in pwd.getpwall()}
    entry = next(known[name] for name in CANDIDATES if name in known)
    data = folder / "data"
    owner = data.stat() if data.exists() else None
    uid, gid = (owner.st_uid, owner.st_gid) if owner and owner.st_uid != 0 else (entry.pw_uid, entry.pw_gid)
    return Account(uid, own_group() if SHARED in known and uid == known[SHARED].pw_uid else gid)


def own_group() -> int:
    """Return the first group id of `OWN_GROUPS` that no group of this machine has."""
    taken = {entry.gr_gid for entry in grp.getgrall()}
    return next(gid for gid in OWN_GROUPS if gid not in taken)


def user_name() -> str:
    """Return the name of the user of this process, by which Postgres recognises who connects."""
    return pwd.getpwuid(os.geteuid()).pw_name
