"""Client that sends one prompt through the router, as an application would, to up to four models at once."""

from __future__ import annotations

import json
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
    """Return a token of scope infer in the project, valid for an hour.

    It is created if needed, stored in the person's session and used again. Raises Invalid if the person's roles do not
    grant the scope.
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
    headers = {"Authorization": f"Bearer {token}"} | ({"X-Session-Key": session} if session else {})
    client = httpx.Client(base_url=settings.ROUTER_URL, headers=headers, timeout=TIMEOUT_S)
    with client, ThreadPoolExecutor(MOST_MODELS) as threads:
        return list(threads.map(lambda model: ask_one(client, model, body), models))


def ask_one(client: httpx.Client, model: str, body: dict[str, Any]) -> Answer:
    """Return the model's answer; an error of the network or the router becomes its `problem`."""
    began = time.monotonic()
    try:
        answer = client.post("/v1/completions", json={**body, "model": model})
    except httpx.HTTPError as error:
        return away(model, error)
    seconds = time.monotonic() - began
    if answer.status_code != 200:
        return Answer(model, problem=error_message(answer), seconds=seconds)
    return answered(model, answer, seconds)


def stream(models: Sequence[str], token: str, session: str, body: dict[str, Any]) -> Iterator[Piece]:
    """Ask all models at once; yield (place of the model, piece of its text) as they come, and its whole answer last.

    The arguments are those of `ask`.
    """
    headers = {"Authorization": f"Bearer {token}"} | ({"X-Session-Key": session} if session else {})
    client = httpx.Client(base_url=settings.ROUTER_URL, headers=headers, timeout=TIMEOUT_S)
    pieces: SimpleQueue[Piece] = SimpleQueue()
    with client, ThreadPoolExecutor(MOST_MODELS) as threads:
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
                answer.read()
                say(Answer(model, problem=error_message(answer), seconds=time.monotonic() - began))
                return
            for chunk in chunks(answer):
                tokens = (chunk.get("usage") or {}).get("completion_tokens", tokens)
                for choice in chunk.get("choices", ()):
                    texts.append(choice["text"])
                    say(choice["text"])
    except (httpx.HTTPError, ValueError, KeyError) as error:
        say(away(model, error))
        return
    say(complete(model, answer.headers, "".join(texts), tokens, time.monotonic() - began))


def chunks(answer: httpx.Response) -> Iterator[dict[str, Any]]:
    """Yield the parsed events of a streamed response, without the final `[DONE]`.

    Raises ValueError for an event that is not JSON, and if the stream ends with an error.
    """
    for line in answer.iter_lines():
        if not line.startswith("data: ") or line == "data: [DONE]":
            continue
        chunk: dict[str, Any] = json.loads(line.removeprefix("data: "))
        if "error" in chunk:
            raise ValueError("the stream ended with an error")
        yield chunk


def away(model: str, error: Exception) -> Answer:
    """Return an answer whose problem says that the router did not respond, or not to the end."""
    return Answer(
        model, problem=f"The router did not respond ({type(error).__name__}). Your prompt is still here: try again."
    )


def answered(model: str, answer: httpx.Response, seconds: float) -> Answer:
    """Return the router's response as an Answer."""
    body = answer.json()
    tokens = body.get("usage", {}).get("completion_tokens", 0)
    return complete(model, answer.headers, body["choices"][0]["text"], tokens, seconds)


def complete(model: str, headers: httpx.Headers, text: str, tokens: int, seconds: float) -> Answer:
    """Return an Answer with the version, the arm and the response id from the router's headers."""
    return Answer(
        model,
        text=text,
        version=headers.get("X-Adapter-Version", ""),
        arm=headers.get("X-Rollout-Arm", ""),
        response_id=headers.get("X-Response-ID", ""),
        seconds=seconds,
        tokens=tokens,
    )


def error_message(answer: httpx.Response) -> str:
    """Return the router's status and error message, or only the status if the response is not JSON."""
    if "application/json" not in answer.headers.get("Content-Type", ""):
        return f"The router answered {answer.status_code}. Your prompt is still here: try again."
    error = answer.json().get("error", {})
    return f"{answer.status_code}: {error.get('message', 'no reason given')}"
