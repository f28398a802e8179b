"""Client that sends one prompt through the router, as an application would, to up to four models at once."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

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
    """One model's answer, after `seconds` and with `tokens`.

    `problem` says what went wrong and what to do, else it is "".
    """

    model: str
    text: str = ""
    version: str = ""
    arm: str = ""
    response_id: str = ""
    seconds: float = 0.0
    tokens: int = 0
    problem: str = ""


def token_for(request: HttpRequest, project: Project) -> str:
    """Return a token of scope infer in the project, valid for an hour.

    It is stored in the person's session and used again.

    Raises Invalid if the person's roles do not grant the scope.
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
    """Ask all models at once and return the answers in the order of the models; an error is its answer's `problem`.

    `session` is the X-Session-Key, which may be empty; `body` is for /v1/completions, without `model`.
    """
    headers = {"Authorization": f"Bearer {token}"} | ({"X-Session-Key": session} if session else {})
    client = httpx.Client(base_url=settings.ROUTER_URL, headers=headers, timeout=TIMEOUT_S)
    with client, ThreadPoolExecutor(MOST_MODELS) as threads:
        return list(threads.map(lambda model: ask_one(client, model, body), models))


def ask_one(client: httpx.Client, model: str, body: dict[str, Any]) -> Answer:
    """Return the model's answer; an error of the network or the router is its `problem`."""
    began = time.monotonic()
    try:
        answer = client.post("/v1/completions", json={**body, "model": model})
    except httpx.HTTPError as error:
        return Answer(
            model, problem=f"The router did not respond ({type(error).__name__}). Your prompt is still here: try again."
        )
    seconds = time.monotonic() - began
    if answer.status_code != 200:
        return Answer(model, problem=error_message(answer), seconds=seconds)
    return answered(model, answer, seconds)


def answered(model: str, answer: httpx.Response, seconds: float) -> Answer:
    """Return a successful response of the router as an answer."""
    body, headers = answer.json(), answer.headers
    return Answer(
        model,
        text=body["choices"][0]["text"],
        version=headers.get("X-Adapter-Version", ""),
        arm=headers.get("X-Rollout-Arm", ""),
        response_id=headers.get("X-Response-ID", ""),
        seconds=seconds,
        tokens=body.get("usage", {}).get("completion_tokens", 0),
    )


def error_message(answer: httpx.Response) -> str:
    """Return the router's status and error message, or its status alone if the response is not JSON."""
    if "application/json" not in answer.headers.get("Content-Type", ""):
        return f"The router answered {answer.status_code}. Your prompt is still here: try again."
    error = answer.json().get("error", {})
    return f"{answer.status_code}: {error.get('message', 'no reason given')}"
