"""The commands that produce evidence: audit verify, audit export, dossier."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from adapterhub.cli.exit_codes import Ended
from adapterhub.cli.session import AsJson, Project, hub, project_of, say
from adapterhub.client import calls
from adapterhub.core.counts import counted

audit = typer.Typer(no_args_is_help=True, help="The audit trail.")
Output = Annotated[Path | None, typer.Option("--output", "-o", help="A file; standard output by default.")]


class Kind(StrEnum):
    """The formats of an exported audit trail."""

    JSONL = "jsonl"
    CSV = "csv"
    BUNDLE = "bundle"


def write(content: bytes, output: Path | None) -> None:
    """Write the content to the file, or to standard output without one."""
    if output:
        output.write_bytes(content)
    else:
        sys.stdout.buffer.write(content)


@audit.command()
def verify(project: Project = "", as_json: AsJson = False) -> None:
    """Verify the project's audit hash chain; exit code 1 when it is broken."""
    with hub() as api:
        verdict = api.send(calls.verify_audit(project_of(api, project)))
    state = "intact" if verdict["ok"] else f"broken at {', '.join(str(one['sequence']) for one in verdict['faults'])}"
    say(verdict, f"{verdict['project']}: {counted(verdict['events'], 'event')}, {state}", as_json)
    if not verdict["ok"]:
        raise Ended("The audit trail is not intact.")


@audit.command()
def export(
    project: Project = "",
    kind: Annotated[
        Kind, typer.Option("--as", help="Format of the export; a bundle is a ZIP file that can be verified.")
    ] = Kind.JSONL,
    output: Output = None,
) -> None:
    """Export the project's audit trail, to keep it elsewhere."""
    with hub() as api:
        write(api.send(calls.export_audit(project_of(api, project), kind)), output)


def dossier(
    adapter: Annotated[str, typer.Argument()],
    number: Annotated[int, typer.Argument(metavar="VERSION", help="The version's number.")],
    output: Output = None,
) -> None:
    """Write everything recorded about a version as JSON."""
    with hub() as api:
        document = api.send(calls.dossier(adapter, number))
    write(json.dumps(document, indent=2, ensure_ascii=False).encode() + b"\n", output)
