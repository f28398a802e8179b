"""The tokens that routers take requests from."""

from __future__ import annotations

from registry.serving.routing_table import usable_tokens


def infer_tokens() -> list[str]:
    """Return the ids of the tokens that the routing table gives scope infer."""
    return [token.pk for token in usable_tokens() if "infer" in token.scopes_now()]
