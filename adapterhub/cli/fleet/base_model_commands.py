"""The command about base models: `adapterhub base-model variant`."""

from __future__ import annotations

from typing import Annotated

import typer

from adapterhub.cli.session import AsJson, Reason, hub, say
from adapterhub.client import fleet

base_model = typer.Typer(no_args_is_help=True, help="Base models, and which is a variant of which.")


@base_model.callback()
def group() -> None:
    """Keep `variant` a command of its own: Typer would fold the only one of a group into it."""


@base_model.command("variant")
def variant(
    slug: Annotated[str, typer.Argument(metavar="VARIANT", help="The copy, such as the one with fewer bits.")],
    reason: Reason,
    of: Annotated[str, typer.Option("--of", help="The base model whose adapters it serves. Left out: revoke.")] = "",
    as_json: AsJson = False,
) -> None:
    """Declare that a base model is a variant of another, whose adapters its clusters then serve, or revoke that."""
    with hub() as api:
        changed = api.send(fleet.declare_variant(slug, of or None, reason))
    relation = f"a variant of {changed['variant_of']}" if changed["variant_of"] else "no variant"
    cost = changed["measurement"]
    measured = f"{cost['difference']['mean']:+.4f} nats a token" if cost else "not measured"
    say(changed, f"{slug}: {relation}{f', {measured}' if changed['variant_of'] else ''}", as_json)
