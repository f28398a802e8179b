"""The `adapterhub` command: the REST API for pipelines and people.

Exit codes: 0 done, 1 failed or rolled back, 2 usage, 3 not allowed, 4 conflict, 5 --wait timed out, 6 a gate refused,
7 the rollout is paused, 8 people must sign first. Progress and errors go to stderr; stdout holds one line, or with
--json the REST object, or the error as an object.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
from typing import Annotated, Any, NoReturn, cast

import typer

from adapterhub.cli import (
    apply_commands,
    blind_test_commands,
    config,
    control_commands,
    evidence_commands,
    huggingface_commands,
    intake_commands,
    metric_commands,
    rollout_commands,
    version_commands,
)
from adapterhub.cli.exit_codes import FORESEEN, Ended, Exit, as_object, code_of, readable_lines
from adapterhub.cli.fleet import base_model_commands, project_commands, token_commands
from adapterhub.cli.fleet import commands as fleet_commands
from adapterhub.cli.installation import commands as installation_commands
from adapterhub.cli.oci import commands as oci_commands
from adapterhub.cli.session import only, projects_seen
from adapterhub.client import Client
from adapterhub.client.transport import require_address

EPILOG = (
    "Exit codes: 0 done, 1 failed or rolled back, 2 usage, 3 not allowed, 4 conflict, 5 --wait timed out, "
    "6 a gate refused, 7 the rollout is paused, 8 people must sign first."
)
# The base of all of Typer's errors about arguments; Typer publishes only this one of them.
USAGE_ERROR = cast(type[Exception], typer.BadParameter.__bases__[0])
app = typer.Typer(
    name="adapterhub",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    epilog=EPILOG,
    help="The whole life of a LoRA adapter, from a pipeline or a terminal.",
)
app.add_typer(rollout_commands.alias, name="alias")
app.add_typer(evidence_commands.audit, name="audit")
app.add_typer(blind_test_commands.blind, name="blind")
app.add_typer(huggingface_commands.hub, name="hub")
app.add_typer(oci_commands.oci, name="oci")
app.add_typer(fleet_commands.cluster, name="cluster")
app.add_typer(fleet_commands.replica, name="replica")
app.add_typer(project_commands.project, name="project")
app.add_typer(token_commands.token, name="token")
app.add_typer(base_model_commands.base_model, name="base-model")
for command in (
    intake_commands.check,
    intake_commands.push,
    intake_commands.reduce,
    version_commands.analyze,
    version_commands.train,
    metric_commands.metrics,
    rollout_commands.rollout,
    control_commands.pause,
    control_commands.resume,
    control_commands.approve,
    control_commands.cancel,
    rollout_commands.promote,
    rollout_commands.rollback,
    evidence_commands.dossier,
    apply_commands.plan,
    apply_commands.apply,
    installation_commands.backup,
    installation_commands.restore,
):
    app.command()(command)
app.command("eval")(version_commands.evaluate)


def print_version(wanted: bool) -> None:
    """Print the version and end, if the option was given."""
    if wanted:
        typer.echo(importlib.metadata.version("adapterhub"))
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Declare the options that stand before every command."""


@app.command()
def login(
    url: Annotated[str, typer.Argument(help="Address of AdapterHub, e.g. https://hub.example.org.")],
    project: Annotated[str, typer.Option(help="Default project of later commands.")] = "",
) -> None:
    """Sign in: ask for a token or read it from a pipe, test it, and store it in a file that only you can read."""
    try:
        require_address(url)
    except ValueError as error:
        raise Ended(str(error), Exit.USAGE) from None
    token = typer.prompt("Token", hide_input=True, err=True) if sys.stdin.isatty() else sys.stdin.readline().strip()
    with Client(url, token) as api:
        slugs = projects_seen(api)
    chosen = project or only(slugs)
    if chosen not in slugs:
        others = ", ".join(slugs) or "no project"
        raise Ended(f"The token has no access to a project {chosen!r}, only to {others}.", Exit.USAGE)
    config.save(config.Config(url, token, chosen), config.path_of())
    typer.echo(f"Signed in to {url}, project {chosen}: {config.path_of()}")


def main() -> None:
    """Run the console script: print an expected error on stderr, with --json also on stdout, and exit with its code."""
    as_json = "--json" in sys.argv[1:]
    try:
        # Typer ends the process after a wrong argument itself, unless it is asked for the exception.
        sys.exit(app(standalone_mode=not as_json))
    except USAGE_ERROR as error:
        end(Ended(cast(Any, error).format_message(), Exit.USAGE), as_json=as_json)
    except FORESEEN as error:
        end(error, as_json=as_json)


def end(error: Exception, *, as_json: bool) -> NoReturn:
    """Print the error on stderr, with `as_json` also as JSON on stdout, and exit with its code."""
    for line in readable_lines(error):
        typer.echo(line, err=True)
    if as_json:
        typer.echo(json.dumps(as_object(error), indent=2, ensure_ascii=False))
    sys.exit(code_of(error))
