"""The server of the signer process: one call, which verifies a person and carries out their decision.

It trusts no word of the caller about who decides: the person is the one of the session, as the signed session says, and
the sign-in is fresh or the password right.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from importlib import import_module
from typing import Any

from asgiref.sync import sync_to_async
from django.conf import settings
from django.contrib.auth import get_user
from django.db import close_old_connections
from django.http import HttpRequest
from rest_framework import serializers

from adapterhub.accounts.signer.kinds import KINDS
from adapterhub.accounts.signing_rules import Meaning, require_fresh_sign_in
from adapterhub.api.permissions import actor_of
from adapterhub.api.request_state import marked
from adapterhub.core.errors import DomainError, Invalid, NotAllowed, TooMany

MOST_BYTES = 64 * 1024

Message = MutableMapping[str, Any]


class FieldsSerializer(serializers.Serializer[Any]):
    """The fields of a verb: its reason and, of an approval, the meaning and the evidence that was seen."""

    reason = serializers.CharField(max_length=2000)
    meaning = serializers.ChoiceField(Meaning.choices, required=False)
    seen = serializers.CharField(max_length=64, required=False, allow_blank=True)


class DecisionSerializer(serializers.Serializer[Any]):
    """A decision: the record and its kind, the verb with its fields, and the session and password of who decides."""

    kind = serializers.CharField(max_length=20)
    record = serializers.CharField(max_length=40)
    verb = serializers.CharField(max_length=20)
    session = serializers.CharField(max_length=40)
    password = serializers.CharField(allow_blank=True, trim_whitespace=False)
    address = serializers.CharField(max_length=100, allow_blank=True)
    request_id = serializers.CharField(max_length=64)
    details = FieldsSerializer()


async def application(
    scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
) -> None:
    """Answer `GET /healthz` and `POST /decisions`; 404 for others, 413 for a body over MOST_BYTES."""
    if scope["path"] == "/healthz":
        return await answer(send, 200, {})
    if (scope["method"], scope["path"]) != ("POST", "/decisions"):
        return await answer(send, 404, {})
    body = await read(receive)
    if len(body) > MOST_BYTES:
        return await answer(send, 413, {})
    return await answer(send, *await sync_to_async(decided, thread_sensitive=False)(body))


async def read(receive: Callable[[], Awaitable[Message]]) -> bytes:
    """Return the request's body; of one that is too long only its beginning, still over MOST_BYTES."""
    body, more = b"", True
    while more and len(body) <= MOST_BYTES:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    return body


async def answer(send: Callable[[Message], Awaitable[None]], status: int, content: dict[str, Any]) -> None:
    """Send a response with this status and JSON content."""
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(content).encode()})


def decided(body: bytes) -> tuple[int, dict[str, Any]]:
    """Carry out a decision; return the status and the JSON of the answer.

    They are 200 and {}, or for a domain error its status and its detail, field and code; TooMany adds `wait_s`.
    """
    close_old_connections()
    try:
        carry_out(parsed(body))
    except DomainError as error:
        wait = {"wait_s": error.wait_s} if isinstance(error, TooMany) else {}
        return error.status, {"detail": error.detail, "field": error.field, "code": error.code, **wait}
    finally:
        close_old_connections()
    return 200, {}


def parsed(body: bytes) -> dict[str, Any]:
    """Return the validated fields of a decision that was sent as JSON. Raises Invalid for another body."""
    try:
        form = DecisionSerializer(data=json.loads(body))
    except (ValueError, RecursionError):
        raise Invalid("The body is not JSON.") from None
    if not form.is_valid():
        raise Invalid(f"The decision is incomplete: {json.dumps(form.errors)}.")
    decision: dict[str, Any] = form.validated_data
    return decision


def carry_out(decision: dict[str, Any]) -> None:
    """Verify the session's person, and decide in their name.

    Raises Invalid for an unknown kind, verb or record, and what the sign-in and the record's verb raise.
    """
    kind = KINDS.get(decision["kind"])
    if kind is None:
        raise Invalid(f"The decision is incomplete: there is no kind {decision['kind']!r}.", field="kind")
    kind.require(decision["verb"], decision["details"])
    request = request_of(decision)
    require_fresh_sign_in(request, decision["password"])
    kind.carry_out(kind.record(decision["record"]), decision["verb"], by=actor_of(request), **decision["details"])


def request_of(decision: dict[str, Any]) -> HttpRequest:
    """Return a request of the session's person.

    Raises NotAllowed for a session that is over, or that was signed with the key of another installation.
    """
    request = HttpRequest()
    request.session = import_module(settings.SESSION_ENGINE).SessionStore(session_key=decision["session"])
    request.user = get_user(request)
    request.META["REMOTE_ADDR"] = decision["address"]
    marked(request).request_id = decision["request_id"]
    if not request.user.is_authenticated:
        raise NotAllowed("Your session is over: sign in and sign again.", code="reauthentication_required")
    return request
