"""Shared parts of the commands: connection, project, common options and output."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from adapterhub.cli import config
from adapterhub.cli.exit_codes import Ended, Exit
from adapterhub.client import Client, calls
from adapterhub.client.shapes import Dataset

AsJson = Annotated[bool, typer.Option("--json", help="Print the REST object.")]
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
    """Return a client of the configured AdapterHub. Raises BadConfig."""
    configuration = config.load().complete()
    return Client(configuration.url, configuration.token)


def project_of(api: Client, slug: str) -> str:
    """Return the named project, else the configured one, else the only one that the token sees. Raises Ended."""
    return slug or config.load().project or only(projects_seen(api))


def projects_seen(api: Client) -> list[str]:
    """Return the slugs of the projects that the token sees."""
    return [str(project["slug"]) for project in api.send(calls.projects())["results"]]


def only(slugs: list[str]) -> str:
    """Return the only project. Raises Ended unless there is exactly one."""
    if len(slugs) != 1:
        raise Ended(f"The token has access to {len(slugs)} projects: choose one with --project.", Exit.USAGE)
    return slugs[0]


def dataset_of(api: Client, project: str, source: str) -> int:
    """Return the id of a dataset, or upload the file first; the same content is the same dataset. Raises Ended."""
    if source.isdecimal():
        return int(source)
    if source.startswith(("s3://", "hf://")):
        address, _, revision = source.partition("@")
        sent = api.send(calls.bring_dataset(project, address, **({"revision": revision} if revision else {})))
    elif Path(source).is_file():
        sent = api.send(calls.upload_dataset(project, Path(source)))
    else:
        raise Ended(f"--dataset {source!r} is neither a number, a file nor a source (s3://, hf://).", Exit.USAGE)
    return checked(api, sent)["id"]


def checked(api: Client, dataset: Dataset) -> Dataset:
    """Wait until a worker has checked the dataset. Raises Ended when it was rejected."""
    if dataset["status"] == "checking":
        states = api.poll(calls.dataset(dataset["id"]), LONGEST_S)
        dataset = next(state for state in states if state["status"] != "checking")
    if dataset["status"] == "rejected":
        raise Ended(f"The dataset was rejected: {dataset['message']}")
    return dataset


def say(resource: Any, line: str, as_json: bool) -> None:
    """Print the REST object as JSON, or one readable line."""
    typer.echo(json.dumps(resource, indent=2, ensure_ascii=False) if as_json else line)
