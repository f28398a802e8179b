"""Decisions that people sign, sent to the signer process; without one this process carries them out itself."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.db import models
from django.http import HttpRequest
from rest_framework.request import Request

from adapterhub.accounts.signer.kinds import kind_of
from adapterhub.accounts.signer.privileges import may_sign_here
from adapterhub.accounts.signing_rules import require_fresh_sign_in
from adapterhub.api.permissions import actor_of
from adapterhub.core.errors import Conflict, DomainError, Invalid, NotAllowed, TooMany, Unavailable

TIMEOUT_S = 20.0
ERRORS = {error.status: error for error in (Conflict, Invalid, NotAllowed, Unavailable)}


def decide(
    record: models.Model, verb: str, request: HttpRequest | Request, *, password: str = "", **fields: Any
) -> None:
    """Have the signed-in person decide about a record, through the signer process if there is one, and reload it then.

    `verb` is one that the record's kind has, such as `approve`; `fields` are those of the verb, such as the reason. The
    kind's follow-up runs afterwards. Raises NotAllowed for tokens and without a fresh sign-in or the right password,
    TooMany after too many wrong ones, what the verb raises, and Unavailable if the signer does not respond or, without
    one, the database lets only a signer sign.
    """
    name, kind = kind_of(record)
    if not settings.SIGNER_URL:
        require_fresh_sign_in(request, password)
        require_right_to_sign()
        kind.carry_out(record, verb, by=actor_of(request), **fields)
    elif getattr(request, "auth", None):
        raise NotAllowed("Tokens cannot approve: sign in as a person.", code="token_cannot_approve")
    else:
        ask(
            {
                "kind": name,
                "record": str(record.pk),
                "verb": verb,
                "session": request.session.session_key,
                "password": password,
                "address": request.META.get("REMOTE_ADDR", ""),
                "request_id": actor_of(request).request_id,
                "details": fields,
            }
        )
        record.refresh_from_db()
    kind.follow_up(record)


def require_right_to_sign() -> None:
    """Raise Unavailable unless the database role of this process may sign."""
    if not may_sign_here():
        raise Unavailable(
            "This database lets only the signer process sign: name it in ADAPTERHUB_SIGNER_URL.", code="signer_away"
        )


def ask(decision: Mapping[str, Any]) -> None:
    """Send a decision, the fields of the server's DecisionSerializer, to the signer and wait until it is carried out.

    Raises the domain error that the signer answers, or Unavailable if it does not answer.
    """
    connection = connection_to(settings.SIGNER_URL)
    try:
        connection.request(
            "POST", "/decisions", json.dumps(decision, default=str), {"Content-Type": "application/json"}
        )
        answer = connection.getresponse()
        status, body = answer.status, answer.read()
    except (OSError, HTTPException) as error:
        raise Unavailable(
            f"The signer process does not answer ({type(error).__name__}): look at its log, and sign again.",
            code="signer_away",
        ) from None
    finally:
        connection.close()
    if status != HTTPStatus.OK:
        raise error_of(status, body)


def connection_to(url: str) -> HTTPConnection:
    """Return a connection, not opened yet, to `unix:///path` or `http://host:port`."""
    where = urlsplit(url)
    if where.scheme == "unix":
        return UnixConnection(where.path)
    return HTTPConnection(str(where.hostname), where.port, timeout=TIMEOUT_S)


class UnixConnection(HTTPConnection):
    """An HTTP connection over a Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("signer", timeout=TIMEOUT_S)
        self.path = path

    def connect(self) -> None:
        """Open the connection; later reads and writes wait at most TIMEOUT_S. Raises OSError if nobody listens."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(TIMEOUT_S)
        self.sock.connect(self.path)


def error_of(status: int, body: bytes) -> DomainError:
    """Return the domain error that the signer's answer stands for; Unavailable for an answer that cannot be read."""
    try:
        content = json.loads(body)
        if status == TooMany.status:
            return TooMany(content["detail"], wait_s=content["wait_s"])
        return ERRORS[status](content["detail"], field=content["field"], code=content["code"])
    except (ValueError, KeyError):
        return Unavailable(f"The signer process failed ({status}): look at its log.", code="signer_away")
