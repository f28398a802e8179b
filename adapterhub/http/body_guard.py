"""Limits on the bodies of requests: how much each caller may send to which path, and how much is held at once.

Django keeps a whole body, in memory or on disk, before any of its code runs. So this checks it before Django reads it.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from importlib import import_module
from io import BytesIO
from typing import Any

from django.conf import settings
from django.contrib.auth import get_user
from django.core.handlers.asgi import ASGIRequest
from django.db import close_old_connections
from django.urls import Resolver404, resolve
from rest_framework.exceptions import AuthenticationFailed
from rest_framework.request import Request

from adapterhub.accounts.authentication import TokenAuthentication
from adapterhub.api.problems import CONTENT_TYPE, headers_of, problem
from adapterhub.core.errors import DomainError, NotSignedIn, TooLarge, TooSlow, Unavailable
from adapterhub.http.heads import require_head

Scope = dict[str, Any]
Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Any], Awaitable[None]]
Application = Callable[[Scope, Any, Any], Awaitable[object]]

# What anybody may send: a sign-in, a form. Nobody is asked for it.
SMALL_BYTES = 2**16
# A body may pause for so long, and has so much time besides that of its bytes.
PAUSE_S, GRACE_S, LEAST_BYTES_PER_S = 30.0, 60.0, 10_000


class BodyGuard:
    """ASGI middleware that refuses bodies that are too large or too slow, or for which there is no room.

    A body that is announced as too large is refused at once. Others are counted while the application
    reads them: the bytes that are held at once are limited, in all and for each caller. A body that may
    be over SMALL_BYTES needs a token or a session, which is looked up in `threads`.
    """

    def __init__(self, application: Application, threads: Executor) -> None:
        self._application, self._threads = application, threads
        self._spool = Spool()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer it with the error as problem JSON.

        No more of the body is read than is allowed.
        """
        try:
            require_head(scope)
            announced = announced_bytes(scope)
            caller, most = "", SMALL_BYTES
            if announced is None or announced > SMALL_BYTES:
                loop = asyncio.get_running_loop()
                caller, most = await loop.run_in_executor(self._threads, allowed, scope)
            if (announced or 0) > most:
                raise too_large(caller, most)
            with self._spool.share(caller) as share:
                await self._application(scope, Intake(receive, share, caller, most), send)
        except Refused as refusal:
            await answer(refusal.error, send)
        except DomainError as error:
            await answer(error, send)


class Refused(Exception):
    """Raised out of the application while it reads a body that is refused; `error` is what the caller gets."""

    def __init__(self, error: DomainError) -> None:
        super().__init__(str(error))
        self.error = error


class Intake:
    """A `receive` that counts the body's bytes.

    Raises Refused if the body has over `most` bytes, pauses or comes too slowly, or if the bodies that are being read
    leave no room for it in the spool.
    """

    def __init__(self, receive: Receive, share: Share, caller: str, most: int) -> None:
        self._receive, self._share, self._caller, self._most = receive, share, caller, most
        self._began, self._bytes, self._is_whole = time.monotonic(), 0, False

    async def __call__(self) -> Message:
        """Return the next message. Raises Refused."""
        if self._is_whole:
            return await self._receive()
        try:
            async with asyncio.timeout(PAUSE_S):
                message = await self._receive()
        except TimeoutError:
            raise Refused(TooSlow(f"Nothing of the body came for {PAUSE_S:.0f} s.")) from None
        self._take(len(message.get("body", b"")))
        self._is_whole = not message.get("more_body", False)
        return message

    def _take(self, count: int) -> None:
        self._bytes += count
        if self._bytes > self._most:
            raise Refused(too_large(self._caller, self._most))
        if time.monotonic() - self._began > GRACE_S + self._bytes / LEAST_BYTES_PER_S:
            raise Refused(TooSlow(f"A body must come at {LEAST_BYTES_PER_S // 1000} kB/s or more."))
        self._share.add(count)


class Spool:
    """A count of the bytes of all bodies that this process holds, by caller; it does not hold the bodies.

    Its shares raise Refused (503) above SPOOL_BYTES in all, or half of that for one caller.
    """

    def __init__(self) -> None:
        self._held: Counter[str] = Counter()

    @contextmanager
    def share(self, caller: str) -> Iterator[Share]:
        """Yield the count of one body's bytes, which are subtracted again at the end of the block."""
        share = Share(self._held, caller)
        try:
            yield share
        finally:
            share.release()


class Share:
    """The bytes of one body in the spool."""

    def __init__(self, spooled: Counter[str], caller: str) -> None:
        self._held, self._caller, self._bytes = spooled, caller, 0

    def add(self, count: int) -> None:
        """Count bytes. Raises Refused if there is no room in the spool, or if the caller has more than half of it."""
        most = settings.SPOOL_BYTES
        if self._held.total() + count > most or self._held[self._caller] + count > most // 2:
            raise Refused(Unavailable("Too many uploads are in progress: send it again in a minute.", code="busy"))
        self._bytes += count
        self._held[self._caller] += count

    def release(self) -> None:
        """Release the bytes counted so far."""
        self._held[self._caller] -= self._bytes
        if not self._held[self._caller]:
            del self._held[self._caller]


def announced_bytes(scope: Scope) -> int | None:
    """Return the length of the body according to the headers: None if it is not known, 0 without a body."""
    announced = dict(scope["headers"])
    if b"transfer-encoding" in announced:
        return None
    length = announced.get(b"content-length", b"0")
    return int(length) if length.isdigit() else None


def allowed(scope: Scope) -> tuple[str, int]:
    """Return the caller, `token:<id>` or `user:<id>`, and how many bytes they may send to this path.

    Raises NotSignedIn without a valid token or session, and TooMany for an address that fails too often.
    """
    try:
        request = ASGIRequest(scope, BytesIO())
        caller = caller_of(request)
        is_upload = takes_files(scope["path"], scope["method"])
        return caller, settings.UPLOAD_BYTES if is_upload else settings.DATA_UPLOAD_MAX_MEMORY_SIZE
    finally:
        close_old_connections()


def caller_of(request: ASGIRequest) -> str:
    """Return the caller as `token:<id>` or `user:<id>`.

    Raises NotSignedIn without a valid token or session, and TooMany for an address that fails too often.
    """
    try:
        if known := TokenAuthentication().authenticate(Request(request)):
            return f"token:{known[1].pk}"
    except AuthenticationFailed as error:
        raise NotSignedIn(str(error.detail)) from None
    request.session = import_module(settings.SESSION_ENGINE).SessionStore(
        request.COOKIES.get(settings.SESSION_COOKIE_NAME)
    )
    user = get_user(request)
    if not user.is_authenticated:
        raise NotSignedIn(f"A body of over {SMALL_BYTES >> 10} kB needs a token or a session.")
    return f"user:{user.pk}"


def takes_files(path: str, method: str) -> bool:
    """Return True if the view at the path accepts uploads with this HTTP method; False if there is no such view.

    The attribute `takes_files` says so: True at a function, the names of the actions at a view set.
    """
    try:
        view = resolve(path).func
    except Resolver404:
        return False
    actions = getattr(view, "actions", None)
    if not actions:
        return bool(getattr(view, "takes_files", False))
    return actions.get(method.lower()) in getattr(getattr(view, "cls", None), "takes_files", ())


def too_large(caller: str, most: int) -> DomainError:
    """Return the error for a body over `most` bytes; without a caller it says that more needs a token or a session."""
    if not caller:
        return NotSignedIn(f"A body of over {SMALL_BYTES >> 10} kB needs a token or a session.")
    return TooLarge(f"A body may have at most {most} bytes here: send less, or a file in parts.")


async def answer(error: DomainError, send: Send) -> None:
    """Send the error as problem JSON, and close the connection: the rest of the body is not read."""
    content = json.dumps(problem(error.status, error.code, error.detail)).encode()
    headers_to_send = headers_of(error) | {
        "Content-Type": CONTENT_TYPE,
        "Content-Length": str(len(content)),
        "Connection": "close",
    }
    headers = [(name.lower().encode(), value.encode()) for name, value in headers_to_send.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": content})
