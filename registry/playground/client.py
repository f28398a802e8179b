"""Client that sends one prompt through the router, as an application would, to up to four models at once."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from queue import SimpleQueue
from typing import Any, cast

import httpx
from django.conf import settings
from django.http import HttpRequest
from django.utils.timezone import now

from adapterhub.accounts import tokens
from adapterhub.accounts.models import ApiToken, Project
from adapterhub.api.permissions import actor_of
from adapterhub.core.tenancy import Scope

TOKEN_LIVES = timedelta(hours=1)
MOST_MODELS = 4
TIMEOUT_S = 60.0
# A project's own engine gives the answer: 1,024 tokens at the most are asked for, each at most one event of a stream.
MOST_BYTES, MOST_CHARACTERS = 2 * 2**20, 20_000
# What Postgres stores in no text, and UTF-8 cannot express.
UNSTORABLE = re.compile("[\0\ud800-\udfff]")
# What an answer raises that is not the router's: cut off, endless, of another form.
UNREADABLE = (httpx.HTTPError, ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError)


class TooLong(ValueError):
    """Raised for an answer that is longer than what was asked for can be."""


@dataclass(frozen=True)
class Answer:
    """One model's answer, with the version and arm that gave it, after `seconds` and with `tokens` tokens.

    `problem` says what went wrong and what to do; "" if nothing did.
    """

    model: str
    text: str = ""
    version: str = ""
    arm: str = ""
    response_id: str = ""
    seconds: float = 0.0
    tokens: int = 0
    problem: str = ""


# The place of the model, and a piece of its text or the whole answer.
Piece = tuple[int, str | Answer]


def token_for(request: HttpRequest, project: Project) -> str:
    """Return the text of an API token of scope infer in the project, to be used for an hour at most.

    It is created if needed, stored in the person's session and used again while it is valid. Raises Invalid if the
    person's roles do not grant the scope.
    """
    stored = request.session.setdefault("playground", {})
    text: str = stored.get(project.slug, "")
    if not (text and ApiToken.objects.usable().filter(pk=text.split("_")[1]).exists()):
        name = f"playground of {request.user}"
        text = tokens.create(project, name[:200], [Scope.INFER], by=actor_of(request), expires_at=now() + TOKEN_LIVES)[
            1
        ]
        request.session["playground"] = {**stored, project.slug: text}
    return text


def ask(models: Sequence[str], token: str, session: str, body: dict[str, Any]) -> list[Answer]:
    """Ask all models at once and return their answers in the same order; an error is its answer's `problem`.

    `session` is the X-Session-Key, which may be empty; `body` is for /v1/completions, without `model`.
    """
    with router(token, session) as client, ThreadPoolExecutor(MOST_MODELS) as threads:
        return list(threads.map(lambda model: ask_one(client, model, body), models))


def ask_one(client: httpx.Client, model: str, body: dict[str, Any]) -> Answer:
    """Return the model's answer; an error of the network or the router becomes its `problem`."""
    began = time.monotonic()
    try:
        with client.stream("POST", "/v1/completions", json={**body, "model": model}) as answer:
            content = b"".join(pieces_of(answer))
        seconds = time.monotonic() - began
        if answer.status_code != 200:
            return Answer(model, problem=error_message(answer, content), seconds=seconds)
        return answered(model, answer.headers, content, seconds)
    except UNREADABLE as error:
        return away(model, error)


def router(token: str, session: str) -> httpx.Client:
    """Return a client of the router with the token and the X-Session-Key, if it is not empty.

    Answers are not compressed, so that what arrives is as large as what is read.
    """
    headers = {"Authorization": f"Bearer {token}", "Accept-Encoding": "identity"}
    headers |= {"X-Session-Key": session} if session else {}
    return httpx.Client(base_url=settings.ROUTER_URL, headers=headers, timeout=TIMEOUT_S)


def pieces_of(answer: httpx.Response) -> Iterator[bytes]:
    """Yield the body's bytes as they arrive. Raises TooLong after MOST_BYTES, and httpx's errors."""
    size = 0
    for piece in answer.iter_raw():
        size += len(piece)
        if size > MOST_BYTES:
            raise TooLong
        yield piece


def stream(models: Sequence[str], token: str, session: str, body: dict[str, Any]) -> Iterator[Piece]:
    """Ask all models at once; yield (place, piece of text) as they come, and (place, Answer) at each one's end.

    The place is the model's index in `models`. The arguments are those of `ask`.
    """
    pieces: SimpleQueue[Piece] = SimpleQueue()
    with router(token, session) as client, ThreadPoolExecutor(MOST_MODELS) as threads:
        for place, model in enumerate(models):
            asking = threads.submit(stream_one, client, model, body, partial(put, pieces, place))
            asking.add_done_callback(partial(end_in_any_case, pieces, place, model))
        for _ in models:
            while isinstance((piece := pieces.get())[1], str):
                yield piece
            yield piece


def end_in_any_case(pieces: SimpleQueue[Piece], place: int, model: str, asking: Future[None]) -> None:
    """Put a failed answer into the queue if the model's thread raised, so that nobody waits for it."""
    if error := asking.exception():
        put(pieces, place, away(model, cast(Exception, error)))


def put(pieces: SimpleQueue[Piece], place: int, piece: str | Answer) -> None:
    """Put a piece of the answer of the model at this place into the queue."""
    pieces.put((place, piece))


def stream_one(client: httpx.Client, model: str, body: dict[str, Any], say: Callable[[str | Answer], None]) -> None:
    """Ask one model; pass each piece of its text to `say`, and at the end the whole answer.

    An error of the network or the router becomes the `problem` of that answer, without the text so far.
    """
    began, texts, tokens = time.monotonic(), [], 0
    wanted = {**body, "model": model, "stream": True, "stream_options": {"include_usage": True}}
    try:
        with client.stream("POST", "/v1/completions", json=wanted) as answer:
            if answer.status_code != 200:
                content = b"".join(pieces_of(answer))
                say(Answer(model, problem=error_message(answer, content), seconds=time.monotonic() - began))
                return
            for chunk in chunks(answer):
                tokens = (chunk.get("usage") or {}).get("completion_tokens", tokens)
                for choice in chunk.get("choices", ()):
                    texts.append(storable(choice["text"]))
                    say(texts[-1])
        whole = complete(model, answer.headers, "".join(texts), tokens, time.monotonic() - began)
    except UNREADABLE as error:
        whole = away(model, error)
    say(whole)


def chunks(answer: httpx.Response) -> Iterator[dict[str, Any]]:
    """Yield the parsed events of a streamed response, without the final `[DONE]`.

    Raises ValueError for an event that is not JSON and for an event of an error, and TooLong.
    """
    for line in lines_of(answer):
        if not line.startswith("data: ") or line == "data: [DONE]":
            continue
        chunk: dict[str, Any] = json.loads(line.removeprefix("data: "))
        if "error" in chunk:
            raise ValueError("the stream ended with an error")
        yield chunk


def lines_of(answer: httpx.Response) -> Iterator[str]:
    """Yield the lines of the body. Raises TooLong, and ValueError for what is no UTF-8."""
    rest = bytearray()
    for piece in pieces_of(answer):
        rest += piece
        # Searched in the new piece alone: a line may come in pieces of a byte.
        if b"\n" in piece:
            *lines, rest = rest.split(b"\n")
            yield from (line.rstrip(b"\r").decode() for line in lines)
    yield rest.decode()


def storable(text: str) -> str:
    """Return the text with U+FFFD for each NUL and each half of a character, which an engine may send.

    Raises TypeError for anything but a text.
    """
    return UNSTORABLE.sub("\ufffd", text)


def away(model: str, error: Exception) -> Answer:
    """Return an answer whose problem says that the router did not respond, not to the end, or with too much."""
    if isinstance(error, TooLong):
        return Answer(
            model,
            problem=f"The answer is longer than {MOST_CHARACTERS} characters, or {MOST_BYTES >> 20} MB as the engine "
            "sends it: ask for fewer tokens.",
        )
    return Answer(
        model, problem=f"The router did not respond ({type(error).__name__}). Your prompt is still here: try again."
    )


def answered(model: str, headers: httpx.Headers, content: bytes, seconds: float) -> Answer:
    """Return the router's response as an Answer.

    Raises TooLong, and others of UNREADABLE for a body of another form.
    """
    body = json.loads(content)
    tokens = (body.get("usage") or {}).get("completion_tokens", 0)
    return complete(model, headers, storable(body["choices"][0]["text"]), tokens, seconds)


def complete(model: str, headers: httpx.Headers, text: str, tokens: Any, seconds: float) -> Answer:
    """Return an Answer with the version, the arm and the response id from the router's headers.

    Raises TooLong, and ValueError for a number of tokens that is none.
    """
    if len(text) > MOST_CHARACTERS:
        raise TooLong
    if type(tokens) is not int or not 0 <= tokens < 2**31:
        raise ValueError("not a number of tokens")
    return Answer(
        model,
        text=text,
        version=headers.get("X-Adapter-Version", ""),
        arm=headers.get("X-Rollout-Arm", ""),
        response_id=headers.get("X-Response-ID", ""),
        seconds=seconds,
        tokens=tokens,
    )


def error_message(answer: httpx.Response, content: bytes) -> str:
    """Return the router's status and error message, or only the status if the response is not JSON.

    Raises an error of UNREADABLE for JSON of another form.
    """
    if "application/json" not in answer.headers.get("Content-Type", ""):
        return f"The router answered {answer.status_code}. Your prompt is still here: try again."
    message = str(json.loads(content).get("error", {}).get("message", "no reason given"))
    return f"{answer.status_code}: {storable(message)[:MOST_CHARACTERS]}"
