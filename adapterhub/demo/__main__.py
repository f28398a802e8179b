"""`python -m adapterhub.demo`: start everything, demonstrate the main job on real input, and keep serving."""

from __future__ import annotations

import json
import secrets
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from adapterhub import environment
from adapterhub.demo.api_client import Hub, Person
from adapterhub.demo.input_data import prepare_dataset, prepare_model
from adapterhub.demo.walkthrough import PROJECT, Record, Walkthrough
from adapterhub.embedded.exceptions import StartError
from adapterhub.embedded.layout import Layout
from adapterhub.embedded.logs import Terminal
from adapterhub.embedded.options import Options
from adapterhub.embedded.process_list import reachable_host
from adapterhub.embedded.supervisor import Supervisor
from adapterhub.environment import BadSetting

USER = "demo"
PEOPLE = {"alice": "trainer", "bob": "approver", "olga": "operator"}
PASSWORD_FILE = "demo-password"  # noqa: S105 - a file name
SCOPES = ("read", "infer", "audit", "admin")


def main() -> int:
    """Run the demo.

    Return 0 when every step succeeded, 1 when a step or the start failed, 130 after Ctrl-C or SIGTERM.
    """
    console = Console()
    try:
        return run(console, Options.from_environ())
    except (StartError, BadSetting) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except KeyboardInterrupt:
        return 130


def run(console: Console, options: Options) -> int:
    """Start the product, run the demo against it, and supervise it until it is stopped; return 0.

    With DEMO_EXIT set to 1 it ends after the last step. Raises StartError if the product does not start or a step
    fails.
    """
    began = time.monotonic()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    Layout(options.home).create()
    with console.status("Fetching the base model and the texts of the law (once)"):
        prepare_model(options.home)
        dataset = prepare_dataset(options.home)
    with Supervisor(options, terminal=Terminal(quiet=True)) as supervisor:
        with console.status("Starting Postgres, Valkey, web, workers, router and engines"):
            supervisor.wait_ready()
        console.print(f"Everything runs; logs lie in {Layout(options.home).logs}")
        hub = connect(options, supervisor.url)
        people = {name: Person(supervisor.url, name, kept_password(options.home, name)) for name in PEOPLE}
        walkthrough = Walkthrough(hub, people, console, replica_urls(options))
        record = walkthrough.run(dataset)
        finish(console, options, supervisor.url, record, time.monotonic() - began)
        if not environment.flag("DEMO_EXIT"):
            supervisor.supervise_forever()
    return 0


def connect(options: Options, url: str) -> Hub:
    """Create the project, its users and a token by management commands, and return a client with the token."""
    ensure(options.home, USER)
    manage("create_project", PROJECT, "--name", "European law", "--admin", USER)
    for name, role in PEOPLE.items():
        ensure(options.home, name, "--member", f"{PROJECT}:{role}")
    token = manage(
        "create_token",
        "demo",
        "--project",
        PROJECT,
        "--person",
        USER,
        *(part for scope in SCOPES for part in ("--scope", scope)),
    )
    return Hub(url, router_url(options), token.strip())


def ensure(home: Path, name: str, *options: str) -> None:
    """Create the user unless there is one, with a generated password. Raises StartError if the command fails."""
    kept_password(home, name)
    manage(
        "ensure_user",
        name,
        "--password-file",
        str(password_file(home, name)),
        "--email",
        f"{name}@{PROJECT}.example",
        *options,
    )


def manage(*arguments: str) -> str:
    """Run a management command and return its output. Raises StartError with the last line of stderr if it fails."""
    done = subprocess.run(  # noqa: S603 - our own arguments
        [sys.executable, "-m", "adapterhub.manage", *arguments],
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise StartError(f"manage.py {arguments[0]} failed: {done.stderr.strip().splitlines()[-1]}")
    return done.stdout


def password_file(home: Path, name: str) -> Path:
    """Return the path of the file with the user's password."""
    return home / (PASSWORD_FILE if name == USER else f"{PASSWORD_FILE}-{name}")


def kept_password(home: Path, name: str) -> str:
    """Return the user's password; generate it on the first call."""
    path = password_file(home, name)
    if not path.exists():
        path.touch(mode=0o600)
        path.write_text(secrets.token_urlsafe(12))
    return path.read_text()


def router_url(options: Options) -> str:
    """Return the router's address."""
    return f"http://{reachable_host(options.host)}:{options.router_port}"


def replica_urls(options: Options) -> list[str]:
    """Return the addresses of the engines."""
    host = reachable_host(options.host)
    return [f"http://{host}:{options.engine_port + number}" for number in range(options.engines)]


def finish(console: Console, options: Options, url: str, record: Record, seconds: float) -> None:
    """Print the addresses and logins, and write them and the record of the demo to demo.json in the data folder."""
    urls = {"web": url, "docs": f"{url}/api/docs/", "admin": f"{url}/admin/", "router": f"{router_url(options)}/v1"}
    logins = {name: kept_password(options.home, name) for name in (USER, *PEOPLE)}
    report = {**asdict(record), "urls": urls, "logins": logins, "seconds": round(seconds, 1)}
    path = options.home / "demo.json"
    path.touch(mode=0o600)
    path.write_text(json.dumps(report, indent=1))
    console.rule("[bold]Ready", align="left")
    for name, address in urls.items():
        console.print(f"{name:>8}  {address}")
    for name, password in logins.items():
        console.print(f"{'login':>8}  {name} / {password}")
    console.print(f"Every step succeeded, in {seconds:.0f} s. All of it is in {path}. Ctrl-C stops it.")


if __name__ == "__main__":
    sys.exit(main())
