"""Regular expressions in requests, checked as the processes that run them will compile them."""

from __future__ import annotations

from adapterhub.core.errors import Invalid
from serving_client.patterns import BadPattern, compiled


def require_pattern(pattern: str, field: str, code: str) -> None:
    """Raise Invalid for a pattern that is not RE2's, or that is too large to be run."""
    try:
        compiled(pattern)
    except BadPattern as error:
        raise Invalid(f"{field}: no regular expression: {error}.", field=field, code=code) from None
