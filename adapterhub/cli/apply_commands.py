"""The commands `plan` and `apply` of the declarative file."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from adapterhub.cli import declaration
from adapterhub.cli.exit_codes import Ended, Exit
from adapterhub.cli.session import LONGEST_S, AsJson, Project, Timeout, Wait, hub, project_of, say
from adapterhub.cli.steps import STEPS, Change, State, summary
from adapterhub.cli.waiting import until_ended
from adapterhub.client import Client, calls

File = Annotated[Path, typer.Option("--file", "-f", help="The declaration.")]
Yes = Annotated[bool, typer.Option("--yes", help="Apply the plan without asking for confirmation.")]
DEFAULT_FILE = Path("adapterhub.yaml")
SIGNS = {"create": "+", "change": "~", "run": "+", "follow": ">", "open": "+"}


def state_of(api: Client, file: Path, project: str, timeout_s: float) -> State:
    """Return the state that the steps start from."""
    declared = declaration.read(file)
    return State(api, declared, declared.project or project_of(api, project), file.parent, timeout_s)


def planned(state: State) -> list[Change]:
    """Return the changes that `apply` would make, in order, without making them."""
    return [change for step in STEPS if (change := step.plan(state))]


def lines(changes: list[Change]) -> str:
    """Return the plan as readable text, one line per change, or a sentence that nothing changes."""
    if not changes:
        return "Nothing changed: everything is as the file says."
    return "\n".join(f"{SIGNS[one.action]} {one.action} {one.kind} {one.name}: {one.why}" for one in changes)


def answer(state: State, changes: list[Change]) -> dict[str, Any]:
    """Return the changes and the ids that exist, for --json."""
    return {"changes": [asdict(change) for change in changes], **summary(state)}


def plan(file: File = DEFAULT_FILE, project: Project = "", as_json: AsJson = False) -> None:
    """Show what `apply` would change, and why, without changing anything."""
    with hub() as api:
        state = state_of(api, file, project, LONGEST_S)
        changes = planned(state)
    say(answer(state, changes), lines(changes), as_json)


def apply(
    file: File = DEFAULT_FILE,
    project: Project = "",
    yes: Yes = False,
    wait: Wait = False,
    timeout: Timeout = LONGEST_S,
    as_json: AsJson = False,
) -> None:
    """Show the changes that the file asks for and carry them out; --wait also follows the rollout."""
    with hub() as api:
        changes = planned(state_of(api, file, project, timeout))
        typer.echo(lines(changes), err=True)
        if changes and not yes:
            require_yes()
        state = state_of(api, file, project, timeout)
        carry_out(state)
        if wait and state.rollout:
            ended = until_ended(api, calls.rollout(state.rollout["id"]), "rollout", timeout)
            state.rollout = {**ended}
    say(answer(state, changes), line(state), as_json)


def require_yes() -> None:
    """Ask for confirmation. Raises Ended when it is refused or nobody can be asked."""
    if not sys.stdin.isatty():
        raise Ended("There is no terminal to confirm on: pass --yes.", Exit.USAGE)
    if not typer.confirm("Carry this out?", err=True):
        raise Ended("Nothing was changed.")


def carry_out(state: State) -> None:
    """Carry out the steps; each checks again first, so that what exists by now is not created twice."""
    for step in STEPS:
        if step.plan(state):
            step.do(state)


def line(state: State) -> str:
    """Return the result in one line."""
    rollout = state.rollout
    return f"{state.version} {rollout['id']} {rollout['status']}" if rollout else f"{state.version}"
