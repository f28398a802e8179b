"""Shared parts of the commands: connection, project, common options and output."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from adapterhub.cli import config
from adapterhub.cli.exit_codes import Ended, Exit
from adapterhub.client import Client, calls
from adapterhub.core.counts import counted

AsJson = Annotated[bool, typer.Option("--json", help="Print the REST object, or the error, as JSON.")]
Reason = Annotated[str, typer.Option("--reason", help="The reason, recorded in the audit trail.")]
Project = Annotated[
    str,
    typer.Option("--project", help="Slug of the project; by default the configured one, or the token's only project."),
]
Wait = Annotated[bool, typer.Option("--wait", help="Wait until it has ended.")]
Timeout = Annotated[
    float, typer.Option("--timeout", min=0, help="Seconds to --wait before giving up with exit code 5.")
]
LONGEST_S = 4 * 3600.0


def hub() -> Client:
    """Return a client of the configured AdapterHub. Raises BadConfig if address or token is missing or invalid."""
    configuration = config.load().complete()
    return Client(configuration.url, configuration.token)


def project_of(api: Client, slug: str) -> str:
    """Return the named project, else the configured one, else the only one that the token sees.

    Raises Ended if the token sees none or several.
    """
    return slug or config.load().project or only(projects_seen(api))


def projects_seen(api: Client) -> list[str]:
    """Return the slugs of the projects that the token sees."""
    return [str(project["slug"]) for project in api.send(calls.projects())["results"]]


def only(slugs: list[str]) -> str:
    """Return the only project. Raises Ended unless there is exactly one."""
    if len(slugs) != 1:
        raise Ended(f"The token has access to {counted(len(slugs), 'project')}: choose one with --project.", Exit.USAGE)
    return slugs[0]


def say(resource: Any, line: str, as_json: bool) -> None:
    """Print the REST object as JSON, or one readable line."""
    typer.echo(json.dumps(resource, indent=2, ensure_ascii=False) if as_json else line)
