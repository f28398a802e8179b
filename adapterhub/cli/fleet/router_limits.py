"""Options of the commands that change what routers take of a project or of an API token."""

from __future__ import annotations

from typing import Annotated

import typer

from adapterhub.cli.exit_codes import Ended, Exit
from adapterhub.cli.fleet.commands import given

RequestsPerS = Annotated[float | None, typer.Option(min=0, max=1e6, help="Requests a second; 0 removes the limit.")]
TokensPerMin = Annotated[int | None, typer.Option(min=0, max=2**31 - 1, help="Tokens a minute; 0 removes the limit.")]


def limits_given(requests_per_s: float | None, tokens_per_min: int | None) -> dict[str, float | None]:
    """Return the limits that the options name, by field; 0 becomes None, which removes a limit.

    Raises Ended with the exit code of a wrong call if there is none.
    """
    options = given(requests_per_s=requests_per_s, tokens_per_min=tokens_per_min)
    if not options:
        raise Ended("Give --requests-per-s, --tokens-per-min or both.", Exit.USAGE)
    return {name: value or None for name, value in options.items()}


def limits_in(requests_per_s: float | None, tokens_per_min: int | None) -> str:
    """Return the limits in words."""
    rates = [(requests_per_s, "requests a second"), (tokens_per_min, "tokens a minute")]
    return ", ".join(f"{rate:,.10g} {unit}" for rate, unit in rates if rate is not None) or "no limit of its own"
