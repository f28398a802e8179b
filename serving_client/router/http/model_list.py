"""Models as callers see them: the aliases of their project, and the versions that they may name."""

from __future__ import annotations

from typing import Any

from serving_client.protocol import RoutingTable, TokenRoute, key_of
from serving_client.router.errors import Refusal
from serving_client.router.resolve import unknown

Model = dict[str, Any]


def model_list(table: RoutingTable, project: str) -> list[Model]:
    """Return the models of a project in OpenAI's form: all aliases, then the versions that callers may name."""
    aliases = [
        model(key.partition("/")[2], "alias", route.created)
        for key, route in table.aliases.items()
        if route.project == project
    ]
    versions = [
        model(name, route.base, route.created)
        for name, route in table.versions.items()
        if route.project == project and table.may_be_named(name)
    ]
    return aliases + versions


def find_model(table: RoutingTable, token: TokenRoute, name: str) -> Model:
    """Return the model of that name in OpenAI's form: an alias, an adapter with a default alias, or a version.

    An alias comes before an adapter or version of the same name. Raises Refusal 404, also for a version that may not be
    named.
    """
    if alias := table.alias(token.project, name):
        return model(name, "alias", alias.created)
    default = table.adapters.get(key_of(token.project, name))
    version = default or name
    route = table.versions.get(version)
    if route is None or route.project != token.project or not (default or table.may_be_named(version)):
        raise Refusal(404, "model_not_found", unknown(table, token, name), param="model")
    return model(name, route.base, route.created)


def model(name: str, root: str, created: int) -> Model:
    """Return a model as OpenAI lists it; `root` is its base model, or "alias"; `created` is in epoch seconds."""
    return {"id": name, "object": "model", "created": created, "owned_by": "adapterhub", "root": root}
