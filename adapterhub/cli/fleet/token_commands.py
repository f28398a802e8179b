"""The command about API tokens: `adapterhub token limit`."""

from __future__ import annotations

from typing import Annotated

import typer

from adapterhub.cli.exit_codes import Ended, Exit
from adapterhub.cli.fleet.commands import given
from adapterhub.cli.session import AsJson, Reason, hub, say
from adapterhub.client import fleet

token = typer.Typer(no_args_is_help=True, help="API tokens, and what each may take of the routers.")


@token.callback()
def group() -> None:
    """Keep `limit` a command of its own: Typer would fold the only one of a group into it."""


@token.command("limit")
def limit(
    token_id: Annotated[str, typer.Argument(metavar="ID", help="The part of its text between `ah_` and the next `_`.")],
    reason: Reason,
    requests_per_s: Annotated[
        float | None, typer.Option(min=0, max=1e6, help="Requests a second; 0 removes the limit.")
    ] = None,
    tokens_per_min: Annotated[
        int | None, typer.Option(min=0, max=2**31 - 1, help="Tokens a minute; 0 removes the limit.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Change what a token may take of the routers; a limit that is not given stays."""
    options = given(requests_per_s=requests_per_s, tokens_per_min=tokens_per_min)
    if not options:
        raise Ended("Give --requests-per-s, --tokens-per-min or both.", Exit.USAGE)
    with hub() as api:
        changed = api.send(
            fleet.limit_token(token_id, reason, **{name: value or None for name, value in options.items()})
        )
    say(changed, f"{changed['name']}: {limits_in(changed['requests_per_s'], changed['tokens_per_min'])}", as_json)


def limits_in(requests_per_s: float | None, tokens_per_min: int | None) -> str:
    """Return the limits in words."""
    rates = [(requests_per_s, "requests a second"), (tokens_per_min, "tokens a minute")]
    return ", ".join(f"{rate:,.10g} {unit}" for rate, unit in rates if rate is not None) or "no limit of its own"
