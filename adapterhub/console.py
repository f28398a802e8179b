"""The console script `adapterhub`, installed even when the packages of the command line are not."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; name the extra to install when a package is missing."""
    try:
        from adapterhub.cli import main as run
    except ModuleNotFoundError as error:
        if str(error.name).partition(".")[0] == "adapterhub":
            raise
        sys.exit(f"The package {error.name} is not installed: `pip install adapterhub[cli]`.")
    run()
