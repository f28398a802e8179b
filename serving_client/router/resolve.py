"""Selection of the version that answers a request. Pure: table, headers and body in, decision out."""

from __future__ import annotations

import functools
import hashlib
import hmac
import json
import random
import re
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice

import orjson

from serving_client.arm_assignment import arm_of, bucket_of
from serving_client.protocol import AliasRoute, RolloutRoute, RoutingTable, TokenRoute, adapter_of, key_of
from serving_client.reports import hash_of
from serving_client.request_annotations import USERS
from serving_client.router.errors import Refusal
from serving_client.router.request_fields import RESPONSES, Body, require_allowed


@dataclass(frozen=True)
class Target:
    """The decision which version answers, in which arm: `candidate`, `control`, `stable`, or `none` without a rollout.

    `version` is a served name; `alias` is None if the request named no alias. `is_sticky` says that the unit (a session
    or user, or None) gets the same arm again, `is_counted` that the rollout's statistics count the answer.
    """

    version: str
    project: str
    arm: str
    alias: str | None
    is_sticky: bool
    unit: str | None
    is_counted: bool = True

    @property
    def unit_hash(self) -> str | None:
        """The hash of the unit, by which reports and rollout lists identify it; None without a unit."""
        return hash_of(self.unit) if self.unit else None


@dataclass(frozen=True)
class Choice:
    """The chosen version and arm; whether the unit gets them again, and whether the statistics count the answer."""

    version: str
    arm: str
    is_sticky: bool = True
    is_counted: bool = True


def authenticate(table: RoutingTable, authorization: str) -> TokenRoute:
    """Return the token of `Bearer ah_<id>_<secret>`. Raises Refusal 401 unless it is valid, 403 without scope infer."""
    token = known_token(table, authorization)
    if token is None:
        raise Refusal(401, "invalid_token", "A bearer token with scope infer is required.")
    if "infer" not in token.scopes:
        raise Refusal(403, "scope_missing", "The token lacks scope infer: use one that has it.")
    return token


def known_token(table: RoutingTable, authorization: str) -> TokenRoute | None:
    """Return the token of `Bearer ah_<id>_<secret>`, whatever its scopes; None for any other text.

    None also for a token that is unknown or expired, or whose secret is wrong.
    """
    scheme, _, text = authorization.partition(" ")
    parts = text.strip().split("_", 2)
    is_ours = scheme.lower() == "bearer" and len(parts) == 3 and parts[0] == "ah"
    token = table.tokens.get(parts[1]) if is_ours else None
    return token if token and holds(token, parts[2]) else None


def holds(token: TokenRoute, secret: str) -> bool:
    """Return True if this is the token's secret and the token has not expired."""
    digest = hashlib.sha256(secret.encode()).hexdigest()
    return hmac.compare_digest(token.hash, digest) and (token.expires_at is None or token.expires_at > time.time())


def parse(raw: bytes, path: str) -> Body:
    """Return the body as a JSON object. Raises Refusal 400 for any other body, and for a field that is not allowed.

    `store` is set to False for /v1/responses, and numbers that name users become texts.
    """
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise Refusal(400, "bad_json", f"The body is not valid JSON in UTF-8: {error}.") from None
    if not isinstance(body, dict):
        raise Refusal(400, "bad_json", "The body is not a JSON object.")
    require_once(raw, body)
    require_allowed(path, body)
    if path == RESPONSES:
        # The next request may reach another engine.
        body["store"] = False
    return with_named_users(body)


def require_once(raw: bytes, body: Body) -> None:
    """Raise Refusal 400 for a field that the raw body names twice: all but the last would be dropped in silence."""
    for name in body:
        if may_repeat(raw, f'"{name}"'.encode()) and name in repeated_names(raw):
            raise Refusal(400, "bad_json", f"The body has {name[:200]} twice: send it once.", param=name[:200])


def may_repeat(raw: bytes, quoted: bytes) -> bool:
    """Return True if the quoted name stands before a colon more than once, be it in nested objects; a quick look."""
    names = re.compile(re.escape(quoted) + rb"\s*:")
    return raw.count(quoted) > 1 and len(list(islice(names.finditer(raw), 2))) > 1


def repeated_names(raw: bytes) -> set[str]:
    """Return the names that stand in the outermost object of a JSON text more than once.

    A text that is nested too deeply for this reading is refused later; it has none.
    """
    try:
        pairs: list[tuple[str, object]] = json.loads(raw, object_pairs_hook=list)
    except RecursionError:
        return set()
    return {name for name, count in Counter(name for name, _ in pairs).items() if count > 1}


def with_named_users(body: Body) -> Body:
    """Return the body with the fields that name a user as texts where they are numbers: engines demand texts."""
    numbers = {name: str(body[name]) for name in USERS if type(body.get(name)) is int}
    return {**body, **numbers}


def rewritten(body: Body, target: Target) -> bytes:
    """Return the body for the engine, with the served name as its model. Raises Refusal 400 for one nested too deeply.

    `cache_salt` separates projects in the engine's prefix cache, so that none can find out by the time of an answer
    what another has asked.
    """
    try:
        return orjson.dumps({**body, "model": target.version, "cache_salt": salt_of(target.project)})
    except orjson.JSONEncodeError:
        raise Refusal(400, "bad_json", "The body is nested too deeply.") from None


@functools.cache
def salt_of(project: str) -> str:
    """Return the project's cache salt, so that engines share no prefix cache between projects."""
    return hashlib.sha256(f"adapterhub|{project}".encode()).hexdigest()


def resolve(table: RoutingTable, token: TokenRoute, headers: Mapping[str, str], body: Body) -> Target:
    """Return the version that answers, with its arm and whether the statistics count the answer.

    The header X-Adapter-ID or `model` names an alias, an adapter with a default alias, or a version. Raises Refusal:
    400 without a name or with a bad override; 403 for an override without the scope or to the candidate of an unsigned
    rollout, and for a version that is not approved; 404 for an unknown name.
    """
    name = headers.get("x-adapter-id") or body.get("model")
    if not isinstance(name, str) or not name:
        raise Refusal(400, "model_missing", "Name an alias in `model` or in X-Adapter-ID.", param="model")
    unit = unit_of(headers, body)
    override = override_of(token, headers)
    alias = table.alias(token.project, name)
    if alias is not None:
        choice = choose(name, alias, unit, override)
        return Target(choice.version, alias.project, choice.arm, name, choice.is_sticky, unit, choice.is_counted)
    default = table.adapters.get(key_of(token.project, name))
    version = default or name
    route = table.versions.get(version)
    if route is None or route.project != token.project:
        raise Refusal(404, "model_not_found", unknown(table, token, name), param="model")
    if default is None and not table.may_be_named(version):
        raise Refusal(
            403,
            "version_not_approved",
            f"{version} is not approved: name its alias, or have the version approved. The project's setting "
            f"named_versions decides which versions may be named.",
        )
    return Target(version, route.project, "none", None, True, unit)


def unknown(table: RoutingTable, token: TokenRoute, name: str) -> str:
    """Return the message for an unknown model; for an adapter's bare name it says how to give it a default alias."""
    for served, route in table.versions.items():
        if adapter_of(served) == name and route.project == token.project:
            return (
                f"The adapter {name[:200]!r} has no default alias: name an alias, or have an operator choose one with "
                f'PATCH /api/v1/aliases/ALIAS/ {{"default": true}}.'
            )
    return f"The model {name[:200]!r} does not exist."


def is_current(table: RoutingTable, target: Target) -> bool:
    """Return True if the alias still serves the version, or if the request named no alias of the table."""
    alias = table.alias(target.project, target.alias)
    return alias is None or target.version in (alias.stable, alias.rollout and alias.rollout.candidate)


def rollout_of(table: RoutingTable, target: Target) -> RolloutRoute | None:
    """Return the running rollout of the target's alias, or None."""
    alias = table.alias(target.project, target.alias)
    return alias.rollout if alias else None


def unit_of(headers: Mapping[str, str], body: Body) -> str | None:
    """Return the session or user that a rollout keeps in one arm: the first non-empty text of three; None without one.

    They are the header X-Session-Key, then `user` and `safety_identifier` of the body.
    """
    named = (headers.get("x-session-key"), body.get("user"), body.get("safety_identifier"))
    return next((unit for unit in named if isinstance(unit, str) and unit), None)


def override_of(token: TokenRoute, headers: Mapping[str, str]) -> str | None:
    """Return the arm in X-Rollout-Override; None without the header.

    Raises Refusal 403 without scope operate, and 400 for another word than candidate or stable.
    """
    override = headers.get("x-rollout-override")
    if override is None:
        return None
    if "operate" not in token.scopes:
        raise Refusal(403, "scope_missing", "X-Rollout-Override needs scope operate.")
    if override not in ("candidate", "stable"):
        raise Refusal(400, "bad_override", "X-Rollout-Override must be candidate or stable.")
    return override


def choose(name: str, alias: AliasRoute, unit: str | None, override: str | None) -> Choice:
    """Choose version and arm: by the override, else the pinned lists, else the holdout, else the split.

    Without a rollout it is the stable version with the arm `none`, even with an override. Without a unit no list and no
    holdout applies, and the split is random. In a rollout the statistics count only what the split chose. `override` is
    candidate, stable or None. Raises Refusal 403 for an override to the candidate of a rollout that is not signed.
    """
    rollout = alias.rollout
    if rollout is None:
        return Choice(alias.stable, "none")
    if override == "candidate" and not rollout.is_signed:
        raise Refusal(
            403, "rollout_not_signed", f"The rollout of {name} is not signed: nobody may choose its candidate."
        )
    sides = {"candidate": rollout.candidate, "control": alias.stable, "stable": alias.stable}
    if override:
        return Choice(sides[override], override, is_sticky=False, is_counted=False)
    if unit and (side := rollout.pinned.get(hash_of(unit))):
        return Choice(sides[side], side, is_counted=False)
    if unit and bucket_of(f"holdout|{name}", unit) < rollout.holdout / 100:
        return Choice(alias.stable, "stable", is_counted=False)
    arm = arm_of(rollout.salt, unit or random.randbytes(16).hex(), rollout.weight)  # noqa: S311 - no secret
    return Choice(sides[arm], arm, is_sticky=unit is not None)
