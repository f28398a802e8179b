"""The operating system account that runs Postgres, which refuses to run as root."""

from __future__ import annotations

import os
import pwd
from dataclasses import dataclass
from pathlib import Path

CANDIDATES = ("adapterhub", "nobody")


@dataclass(frozen=True)
class Account:
    """A user id and a group id."""

    uid: int
    gid: int


def unprivileged_account(folder: Path) -> Account | None:
    """Return the account that runs Postgres with this data folder; None if this process is not root.

    An existing folder keeps its owner, so that a user added later does not lock the database out of its own files.
    """
    if os.geteuid() != 0:
        return None
    if folder.exists() and (owner := folder.stat()).st_uid != 0:
        return Account(owner.st_uid, owner.st_gid)
    known = {entry.pw_name: entry for entry in pwd.getpwall()}
    entry = next(known[name] for name in CANDIDATES if name in known)
    return Account(entry.pw_uid, entry.pw_gid)
