"""The clients for threads and event loops. A call whose response is lost is retried with the same key: one effect."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self, TypeVar, cast

import httpx

from adapterhub.client.calls import Call, page_after
from adapterhub.client.errors import TimedOut, Unreachable
from adapterhub.client.final_states import is_over, reading_of, require_good, require_waitable, twin_of
from adapterhub.client.rest_types import Page
from adapterhub.client.transport import ATTEMPTS, arguments, content, headers, options, passes, pause

T = TypeVar("T")
Row = TypeVar("Row")
POLL_S = 1.0
LONGEST_S = 4 * 3600.0


class Client:
    """A client of AdapterHub's REST API with a token, which threads may share.

    Its methods raise ApiError for an error response, and Unreachable if none comes.
    """

    def __init__(self, url: str, token: str, **httpx_options: Any) -> None:
        self.http = httpx.Client(**options(url, token), **httpx_options)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.http.close()

    def send(self, call: Call[T]) -> T:
        """Send the call, up to ATTEMPTS times if the connection or the server fails for the moment; return its result.

        Raises ApiError for an error response, and Unreachable if no response came.
        """
        sent = headers(call)
        for attempt in range(1, ATTEMPTS + 1):
            answer, failure = self.attempt(call, sent)
            if answer is not None and not (passes(answer) and attempt < ATTEMPTS):
                return cast(T, content(answer))
            if attempt < ATTEMPTS:
                time.sleep(pause(answer, attempt))
        raise Unreachable(f"{self.http.base_url} does not respond: {failure}") from failure

    def attempt(self, call: Call[Any], sent: dict[str, str]) -> tuple[httpx.Response | None, Exception | None]:
        """Send the request once; return (response, None), or (None, the error) if the connection failed."""
        with ExitStack() as files:
            try:
                answer = self.http.request(call.method, call.path, headers=sent, **arguments(call, files))
            except httpx.TransportError as error:
                return None, error
            return answer, None

    def wait(self, call: Call[T], timeout_s: float = LONGEST_S, *, until: str = "") -> T:
        """Send the call, poll what it began or reads until that has ended, and return it.

        `until` is a status to wait for in place of the end, such as `running` of a rollout. An upload of content that
        is a dataset already returns that dataset. Raises Failed when it did not end well, and for a rollout that is
        paused; TimedOut after `timeout_s`; ValueError for a call that begins nothing.
        """
        require_waitable(call)
        answer = self.send(call)
        if not is_over(answer, until):
            answer = self.ended(reading_of(call, answer), timeout_s, until)
        if twin := twin_of(answer):
            return cast(T, self.send(twin))
        require_good(answer, call.path, until)
        return answer

    def ended(self, call: Call[T], timeout_s: float, until: str = "") -> T:
        """Poll the object; return it once it has ended, well or not, is a paused rollout, or has the status `until`.

        Raises TimedOut after `timeout_s`.
        """
        return next(answer for answer in self.poll(call, timeout_s) if is_over(answer, until))

    def rows(self, call: Call[Page[Row]]) -> Iterator[Row]:
        """Yield the rows of a list, over all its pages."""
        page: Call[Page[Row]] | None = call
        while page:
            listing = self.send(page)
            yield from listing["results"]
            page = page_after(page, listing)

    def poll(self, call: Call[T], timeout_s: float) -> Iterator[T]:
        """Yield the result of the call at once and then once a second. Raises TimedOut after `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while True:
            yield self.send(call)
            if time.monotonic() >= deadline:
                raise TimedOut(f"{call.path} did not end within {timeout_s:.0f} s. It continues on the server.")
            time.sleep(POLL_S)


class AsyncClient:
    """A client of AdapterHub's REST API with a token, for an event loop.

    Its methods raise ApiError for an error response, and Unreachable if none comes.
    """

    def __init__(self, url: str, token: str, **httpx_options: Any) -> None:
        self.http = httpx.AsyncClient(**options(url, token), **httpx_options)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.http.aclose()

    async def send(self, call: Call[T]) -> T:
        """Send the call, up to ATTEMPTS times if the connection or the server fails for the moment; return its result.

        Raises ApiError for an error response, and Unreachable if no response came.
        """
        sent = headers(call)
        for attempt in range(1, ATTEMPTS + 1):
            answer, failure = await self.attempt(call, sent)
            if answer is not None and not (passes(answer) and attempt < ATTEMPTS):
                return cast(T, content(answer))
            if attempt < ATTEMPTS:
                await asyncio.sleep(pause(answer, attempt))
        raise Unreachable(f"{self.http.base_url} does not respond: {failure}") from failure

    async def attempt(self, call: Call[Any], sent: dict[str, str]) -> tuple[httpx.Response | None, Exception | None]:
        """Send the request once; return (response, None), or (None, the error) if the connection failed."""
        with ExitStack() as files:
            try:
                answer = await self.http.request(call.method, call.path, headers=sent, **arguments(call, files))
            except httpx.TransportError as error:
                return None, error
            return answer, None

    async def wait(self, call: Call[T], timeout_s: float = LONGEST_S, *, until: str = "") -> T:
        """Send the call, poll what it began or reads until that has ended, and return it.

        `until` is a status to wait for in place of the end, such as `running` of a rollout. An upload of content that
        is a dataset already returns that dataset. Raises Failed when it did not end well, and for a rollout that is
        paused; TimedOut after `timeout_s`; ValueError for a call that begins nothing.
        """
        require_waitable(call)
        answer = await self.send(call)
        if not is_over(answer, until):
            answer = await self.ended(reading_of(call, answer), timeout_s, until)
        if twin := twin_of(answer):
            return cast(T, await self.send(twin))
        require_good(answer, call.path, until)
        return answer

    async def ended(self, call: Call[T], timeout_s: float, until: str = "") -> T:
        """Poll the object; return it once it has ended, well or not, is a paused rollout, or has the status `until`.

        Raises TimedOut after `timeout_s`.
        """
        return await anext(answer async for answer in self.poll(call, timeout_s) if is_over(answer, until))

    async def rows(self, call: Call[Page[Row]]) -> AsyncIterator[Row]:
        """Yield the rows of a list, over all its pages."""
        page: Call[Page[Row]] | None = call
        while page:
            listing = await self.send(page)
            for row in listing["results"]:
                yield row
            page = page_after(page, listing)

    async def poll(self, call: Call[T], timeout_s: float) -> AsyncIterator[T]:
        """Yield the result of the call at once and then once a second. Raises TimedOut after `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while True:
            yield await self.send(call)
            if time.monotonic() >= deadline:
                raise TimedOut(f"{call.path} did not end within {timeout_s:.0f} s. It continues on the server.")
            await asyncio.sleep(POLL_S)
