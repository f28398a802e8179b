"""The command about API tokens: `adapterhub token limit`."""

from __future__ import annotations

from typing import Annotated

import typer

from adapterhub.cli.fleet.router_limits import RequestsPerS, TokensPerMin, limits_given, limits_in
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
    requests_per_s: RequestsPerS = None,
    tokens_per_min: TokensPerMin = None,
    as_json: AsJson = False,
) -> None:
    """Change what a token may take of the routers; a limit that is not given stays."""
    limits = limits_given(requests_per_s, tokens_per_min)
    with hub() as api:
        changed = api.send(fleet.limit_token(token_id, reason, **limits))
    say(changed, f"{changed['name']}: {limits_in(changed['requests_per_s'], changed['tokens_per_min'])}", as_json)
