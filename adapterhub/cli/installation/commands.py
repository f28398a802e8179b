"""`adapterhub backup` and `adapterhub restore`: the management commands of these names, as processes with Django."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from adapterhub.cli.exit_codes import Ended, Exit

Folder = Annotated[Path, typer.Argument(help="The folder of the backup.")]
Passphrase = Annotated[
    Path | None, typer.Option("--passphrase-file", help="File with the passphrase that seals the installation's keys.")
]


def backup(
    folder: Folder,
    passphrase_file: Passphrase = None,
    without_keys: Annotated[bool, typer.Option("--without-keys", help="The keys are kept elsewhere.")] = False,
    without_artifacts: Annotated[
        bool, typer.Option("--without-artifacts", help="List the artifacts only: the store has copies of its own.")
    ] = False,
) -> None:
    """On the server: write the database as it is now, its artifacts and the keys into a new folder."""
    flags = {"--without-keys": without_keys, "--without-artifacts": without_artifacts}
    manage("backup", folder, passphrase_file, [flag for flag, is_given in flags.items() if is_given])


def restore(
    folder: Folder,
    passphrase_file: Passphrase = None,
    replace: Annotated[bool, typer.Option("--replace", help="Drop the projects that this installation has.")] = False,
) -> None:
    """On the server, with everything stopped but Postgres: make the installation what it was at the backup."""
    manage("restore", folder, passphrase_file, ["--replace"] if replace else [])


def manage(command: str, folder: Path, passphrase_file: Path | None, flags: list[str]) -> None:
    """Run the management command in a process of its own, which writes to this process's output and errors.

    Raises Ended if it fails, or if Django is not installed.
    """
    if importlib.util.find_spec("django") is None:
        needs = "it runs on the server, where `pip install adapterhub[server]` is"
        raise Ended(f"Django is not installed for `adapterhub {command}`: {needs}.", Exit.USAGE)
    secret = ["--passphrase-file", str(passphrase_file)] if passphrase_file else []
    argv = [sys.executable, "-m", "adapterhub.manage", command, str(folder), *secret, *flags]
    done = subprocess.run(argv, check=False)  # noqa: S603 - our own command, no shell
    if done.returncode:
        raise Ended(f"The {command} is not complete.", Exit.USAGE if done.returncode == Exit.USAGE else Exit.FAILED)
