"""The command about projects, `adapterhub project limit`, and the step of a declaration that sets their limits."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from adapterhub.cli.fleet.router_limits import RequestsPerS, TokensPerMin, limits_given, limits_in
from adapterhub.cli.plan_state import Change, State, known
from adapterhub.cli.session import AsJson, Reason, hub, say
from adapterhub.client import fleet

project = typer.Typer(no_args_is_help=True, help="Projects, and what each may take of the routers.")


@project.callback()
def group() -> None:
    """Keep `limit` a command of its own: Typer would fold the only one of a group into it."""


@project.command("limit")
def limit(
    slug: Annotated[str, typer.Argument(metavar="PROJECT", help="Slug of the project.")],
    reason: Reason,
    requests_per_s: RequestsPerS = None,
    tokens_per_min: TokensPerMin = None,
    as_json: AsJson = False,
) -> None:
    """Change what a project may take of the routers; a limit that is not given stays."""
    limits = limits_given(requests_per_s, tokens_per_min)
    with hub() as api:
        changed = api.send(fleet.limit_project(slug, reason, **limits))
    say(changed, f"{changed['slug']}: {limits_in(changed['requests_per_s'], changed['tokens_per_min'])}", as_json)


class TheLimits:
    """The step that gives the project the limits in the file."""

    def plan(self, state: State) -> Change | None:
        """Return the change of the project's limits; None if the file names none, or they are as it says."""
        if state.declared.limits is None:
            return None
        changed = self.changed(state)
        whys = [f"{name} {'no limit' if value is None else format(value, ',.10g')}" for name, value in changed.items()]
        return Change("change", "limits", state.project, ", ".join(whys)) if changed else None

    def changed(self, state: State) -> dict[str, Any]:
        """Return the limits in the file that differ from the project's, by their names."""
        stored = state.api.send(fleet.project(state.project))
        wanted = known(state.declared.limits).model_dump(exclude={"reason"}, exclude_unset=True)
        return {name: value for name, value in wanted.items() if value != stored[name]}

    def do(self, state: State) -> None:
        """Change the limits that differ. Raises ApiError for what the server refuses."""
        reason = known(state.declared.limits).reason
        state.api.send(fleet.limit_project(state.project, reason, **self.changed(state)))
