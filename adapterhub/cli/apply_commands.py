"""The commands `plan` and `apply` of the declarative file."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from adapterhub.cli import declaration
from adapterhub.cli.exit_codes import Ended, Exit, code_of_refusal
from adapterhub.cli.plan_state import Change, State, summary
from adapterhub.cli.rollout_state import exit_of, remedy, standing
from adapterhub.cli.session import LONGEST_S, AsJson, Project, Timeout, Wait, hub, project_of, say
from adapterhub.cli.steps import STEPS
from adapterhub.cli.waiting import until_over
from adapterhub.client import Client, calls

File = Annotated[Path, typer.Option("--file", "-f", help="The declaration.")]
Yes = Annotated[bool, typer.Option("--yes", help="Apply the plan without asking for confirmation.")]
DEFAULT_FILE = Path("adapterhub.yaml")
SIGNS = {"create": "+", "change": "~", "run": "+", "follow": ">", "open": "+"}
# The scope that carrying out a change of this kind needs.
NEEDS = {"limits": "admin", "cluster": "operate", "adapter": "publish", "alias": "operate", "rollout": "operate"}


def state_of(api: Client, file: Path, project: str, timeout_s: float) -> State:
    """Return the state that the steps start from.

    The project is that of the command line, else of the file, else the configured one, else the only one that the token
    sees. Raises Ended for a file that cannot be read, and if no project is chosen.
    """
    declared = declaration.read(file)
    chosen = project or declared.project or project_of(api, "")
    return State(api, declared, chosen, file, timeout_s)


def planned(state: State) -> list[Change]:
    """Return the changes that `apply` would make, in order, without making them; store the token's scopes in the state.

    Raises Ended naming everything that the server would refuse on the way.
    """
    changes = [change for step in STEPS if (change := step.plan(state))]
    check = state.check()
    if refusals := check["refusals"]:
        code = code_of_refusal(refusals[0]["code"], refusals[0]["status"])
        raise declaration.refusal(state.file, refusals, code)
    state.scopes = check["scopes"]
    return changes


def require_scopes(state: State, changes: list[Change]) -> None:
    """Raise Ended unless the token has the scopes for all of the changes."""
    needed = {NEEDS.get(change.kind, "train") for change in changes if change.action != "follow"}
    if lacking := sorted(needed - set(state.scopes)):
        scopes = ", ".join(f"{scope!r}" for scope in lacking)
        raise Ended(f"Carrying this out needs scope {scopes} in project {state.project!r}.", Exit.NOT_ALLOWED)


def lines(state: State, changes: list[Change]) -> str:
    """Return the plan as readable text: a line for each change, and what somebody has to do about the rollout."""
    text = [f"{SIGNS[one.action]} {one.action} {one.kind} {one.name}: {one.why}" for one in changes]
    if exit_of(rollout_of(state)) is not Exit.DONE:
        return "\n".join([*(text or ["There is nothing to create, but somebody has to act:"]), *ongoing(state)])
    return "\n".join(text or ["Nothing changed: everything is as the file says."])


def ongoing(state: State) -> list[str]:
    """Return the declared rollout's state, and what somebody has to do about it, as lines; none without a rollout."""
    rollout = rollout_of(state)
    return [f"! {standing(rollout)}", *filter(None, [remedy(rollout)])] if rollout else []


def rollout_of(state: State) -> dict[str, Any] | None:
    """Return a copy of the declared rollout as last read; None if it was not opened."""
    return {**state.rollout} if state.rollout else None


def answer(state: State, changes: list[Change]) -> dict[str, Any]:
    """Return what `--json` prints: the changes, the ids of the declared things that exist, and the exit code."""
    code = exit_of(rollout_of(state))
    return {"changes": [asdict(change) for change in changes], **summary(state), "exit_code": code}


def plan(file: File = DEFAULT_FILE, project: Project = "", as_json: AsJson = False) -> None:
    """Show what `apply` would change, and why, without changing anything; a token of scope read suffices.

    It ends with an error if the server would refuse a change, or a gate refuses the version. Exit code
    7 when the declared rollout is paused, 8 when it waits for signatures or for the approval of a step.
    """
    with hub() as api:
        state = state_of(api, file, project, LONGEST_S)
        changes = planned(state)
    say(answer(state, changes), lines(state, changes), as_json)
    raise typer.Exit(exit_of(rollout_of(state)))


def apply(
    file: File = DEFAULT_FILE,
    project: Project = "",
    yes: Yes = False,
    wait: Wait = False,
    timeout: Timeout = LONGEST_S,
    as_json: AsJson = False,
) -> None:
    """Show the changes that the file asks for and carry them out; --wait also follows the rollout.

    Exit code 7 when the rollout is paused, 8 when it waits for people to sign.
    """
    with hub() as api:
        before = state_of(api, file, project, timeout)
        changes = planned(before)
        typer.echo(lines(before, changes), err=True)
        require_scopes(before, changes)
        if changes and not yes:
            require_yes()
        state = state_of(api, file, project, timeout)
        carry_out(state)
        if wait and state.rollout:
            call, name = calls.rollout(state.rollout["id"]), f"rollout of {state.rollout['alias']}"
            state.rollout = until_over(api, call, name, timeout)
        refresh(state)
    if exit_of(rollout_of(state)) is not Exit.DONE and changes and not wait:
        typer.echo("\n".join(ongoing(state)), err=True)
    say(answer(state, changes), line(state), as_json)
    raise typer.Exit(exit_of(rollout_of(state)))


def require_yes() -> None:
    """Ask for confirmation. Raises Ended when it is refused or there is no terminal."""
    if not sys.stdin.isatty():
        raise Ended("There is no terminal to confirm on: pass --yes.", Exit.USAGE)
    if not typer.confirm("Carry this out?", err=True):
        raise Ended("Nothing was changed.")


def carry_out(state: State) -> None:
    """Carry out the steps in order; each plans again first, so that what exists by now is not created twice."""
    for step in STEPS:
        if step.plan(state):
            step.do(state)


def refresh(state: State) -> None:
    """Read the alias and the rollout of the state again."""
    if state.alias:
        state.alias = state.api.send(calls.alias(state.named(state.alias["name"])))
    if state.rollout:
        state.rollout = state.api.send(calls.rollout(state.rollout["id"]))


def line(state: State) -> str:
    """Return the result in one line: the version, what the alias serves, and the rollout's state."""
    serving = f", {state.alias['name']} serves {state.alias['version']}" if state.alias else ""
    rollout = rollout_of(state)
    return f"{state.version}{serving}{f', {standing(rollout)}' if rollout else ''}"
