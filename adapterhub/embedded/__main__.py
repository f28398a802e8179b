"""`python -m adapterhub.embedded run | services | stop`."""

from __future__ import annotations

import argparse
import errno
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from adapterhub.embedded.exceptions import StartError
from adapterhub.embedded.layout import database_url, redis_url
from adapterhub.embedded.lock import holder
from adapterhub.embedded.options import Options
from adapterhub.embedded.process_list import PROJECT, child_environment, full_plan, services_plan
from adapterhub.embedded.supervisor import Supervisor, lock_path
from adapterhub.environment import BadSetting

STOP_S = 30.0


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return 0 when it ended as asked, 1 with one sentence on stderr when it could not run."""
    parser = argparse.ArgumentParser(prog="python -m adapterhub.embedded", description=__doc__)
    parser.add_argument("command", choices=("run", "services", "stop"))
    command = parser.parse_args(arguments).command
    try:
        options = Options.from_environ()
        return stop(options.home) if command == "stop" else run(options, services_only=command == "services")
    except (StartError, BadSetting) as refused:
        return _refuse(str(refused))
    except OSError as failed:
        if failed.errno != errno.ENOSPC:
            raise
        return _refuse("The disk is full: free some space, or set ADAPTERHUB_HOME to a folder on another disk.")


def run(options: Options, *, services_only: bool) -> int:
    """Start the product, or its services alone, print a ready line on stdout, and run until a signal; return 0.

    Everything is stopped at the end. Raises StartError if the start fails.
    """
    _interrupt_on(signal.SIGTERM, signal.SIGHUP)
    options = replace(options, is_whole=not services_only)
    plan = services_plan() if services_only else full_plan(options)
    supervisor = Supervisor(options, plan)
    try:
        _supervise(supervisor, services_only=services_only)
    except KeyboardInterrupt:
        pass
    finally:
        _ignore(signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        supervisor.stop()
    return 0


def stop(home: Path) -> int:
    """Stop the supervisor that runs with the data folder `home`, if there is one, wait for its end, and return 0.

    Raises StartError, with the command that ends it, if it still runs after STOP_S seconds, and if the lock file does
    not name it.
    """
    pid = holder(lock_path(home))
    if pid is None:
        sys.stdout.write(f"AdapterHub does not run with the data folder {home}.\n")
        return 0
    if not pid:
        raise StartError(f"AdapterHub runs, but {lock_path(home)} does not say as which process: end it by hand.")
    # Only its children may be left, which hold the lock until they have ended.
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_S
    while holder(lock_path(home)) is not None:
        if time.monotonic() > deadline:
            raise StartError(f"AdapterHub (pid {pid}) still stops after {STOP_S:.0f} s: end it with `kill -9 {pid}`.")
        time.sleep(0.1)
    return 0


def _supervise(supervisor: Supervisor, *, services_only: bool) -> None:
    supervisor.start()
    supervisor.wait_ready()
    _say(_ready_line(supervisor, services_only=services_only))
    if not services_only:
        _say(first_run_lines(supervisor))
    supervisor.supervise_forever()


def _say(text: str) -> None:
    if text:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()


def first_run_lines(supervisor: Supervisor) -> str:
    """Return the lines with the link that creates the first account; empty if there is an account.

    The link is read from the command and printed here, because what a step prints is kept in a log file.
    """
    argv = [sys.executable, "-m", "adapterhub.manage", "setup_link", "--if-empty", "--url", supervisor.url]
    environment = child_environment(supervisor.options)
    done = subprocess.run(  # noqa: S603 - our own command, no shell
        argv, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        reason = done.stderr.strip().rpartition("\n")[2]
        return f"The setup link could not be made ({reason}): `manage.py setup_link` prints one."
    link = done.stdout.strip()
    return link and f"Nobody has an account yet. This link creates the first one; it works once, for an hour:\n{link}"


def _ready_line(supervisor: Supervisor, *, services_only: bool) -> str:
    if not services_only:
        return f"ready {supervisor.url}"
    home = supervisor.options.home
    return f"ready {database_url(home)} {redis_url(home)}"


def _interrupt_on(*numbers: signal.Signals) -> None:
    for number in numbers:
        # `nohup` starts us with SIGHUP ignored, which must stay so.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)


def _ignore(*numbers: signal.Signals) -> None:
    for number in numbers:
        signal.signal(number, signal.SIG_IGN)


def _refuse(sentence: str) -> int:
    sys.stderr.write(f"{sentence}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
