"""The demo's client of a running AdapterHub: its REST API and its router, as any customer uses them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from adapterhub.embedded.exceptions import StartError

Json = dict[str, Any]
POLL_S = 0.5


class StepFailed(StartError):
    """Raised when a step of the demo fails; the message says which and why."""


@dataclass(frozen=True)
class Answer:
    """A completion and the facts in its response headers."""

    user: str
    version: str
    arm: str
    response_id: str
    text: str
    tokens: int


class Hub:
    """A client of the REST API, with a token or as a signed-in person, and, with a token, of the router."""

    def __init__(self, url: str, router_url: str = "", token: str = "") -> None:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self.rest = httpx.Client(base_url=f"{url}/api/v1/", headers=headers, timeout=60)
        self.router = httpx.Client(base_url=router_url, headers=headers, timeout=120)

    @classmethod
    def signed_in(cls, url: str, name: str, password: str) -> Hub:
        """Sign in through the sign-in page and return a client with that session.

        Raises StepFailed for a wrong password.
        """
        hub = cls(url)
        hub.rest.get(f"{url}/login/")
        form = {"username": name, "password": password, "csrfmiddlewaretoken": hub.rest.cookies["csrftoken"]}
        if hub.rest.post(f"{url}/login/", data=form).status_code != httpx.codes.FOUND:
            raise StepFailed(f"{name} could not sign in: the password in the data folder is not the account's.")
        hub.rest.headers["X-CSRFToken"] = hub.rest.cookies["csrftoken"]
        return hub

    def refused(self, path: str, body: Json) -> str:
        """Send a POST and return the message of the 403 response. Raises StepFailed for any other status."""
        response = self.rest.post(path, json=body)
        if response.status_code != httpx.codes.FORBIDDEN:
            raise StepFailed(f"POST {path} was not refused: {response.status_code}")
        return words(response)

    def get(self, path: str, **params: Any) -> Any:
        """Return the JSON at the path. Raises StepFailed for an error."""
        return checked(self.rest.get(path, params=params))

    def post(self, path: str, body: Json) -> Any:
        """Send a POST with a JSON body and return the response's JSON. Raises StepFailed for an error."""
        return checked(self.rest.post(path, json=body))

    def upload(self, path: str, fields: Json, file: Path) -> Any:
        """Send a POST with a file and fields as multipart, and return the response's JSON.

        Raises StepFailed for an error.
        """
        with file.open("rb") as stream:
            return checked(self.rest.post(path, data=fields, files={"file": (file.name, stream)}))

    def all(self, path: str, **params: Any) -> list[Json]:
        """Return the rows of all pages of a list."""
        return [row for page in self.pages(path, **params) for row in page]

    def pages(self, path: str, **params: Any) -> Iterator[list[Json]]:
        """Yield the rows of a list, page by page. Raises StepFailed for an error response."""
        page = self.get(path, page_size=200, **params)
        yield page["results"]
        while page["next"]:
            page = checked(self.rest.get(page["next"]))
            yield page["results"]

    def exists(self, path: str) -> Json | None:
        """Return the object at the path; None when it is missing (404). Raises StepFailed for another error."""
        response = self.rest.get(path)
        return None if response.status_code == httpx.codes.NOT_FOUND else checked(response)

    def complete(self, model: str, prompt: str, user: str, tokens: int) -> Answer:
        """Return a completion of exactly `tokens` tokens from the router, without sampling.

        Raises StepFailed for an error response.
        """
        body = {
            "model": model,
            "prompt": prompt,
            "user": user,
            "max_tokens": tokens,
            "temperature": 0,
            "ignore_eos": True,
        }
        response = self.router.post("/v1/completions", json=body)
        answer = checked(response)
        return Answer(
            user=user,
            version=response.headers["X-Adapter-Version"],
            arm=response.headers["X-Rollout-Arm"],
            response_id=response.headers["X-Response-ID"],
            text=answer["choices"][0]["text"],
            tokens=answer["usage"]["completion_tokens"],
        )


@dataclass(frozen=True)
class Person:
    """A member of the team, who signs in anew for each part, because a signature needs a recent sign-in."""

    url: str
    name: str
    password: str

    def sign_in(self) -> Hub:
        """Sign in and return a client with the session."""
        return Hub.signed_in(self.url, self.name, self.password)


def checked(response: httpx.Response) -> Any:
    """Return the response's JSON. Raises StepFailed with the server's message."""
    if response.is_error:
        raise StepFailed(
            f"{response.request.method} {response.request.url.path}: {response.status_code} {words(response)}"
        )
    return response.json()


def words(response: httpx.Response) -> str:
    """Return the error message in a response; of one that is no JSON its first 300 characters."""
    try:
        body = response.json()
    except ValueError:
        return response.text[:300]
    return str(body.get("detail") or body.get("error", {}).get("message") or body)


def wait_for(probe: Callable[[], Json | None], event: str, timeout_s: float) -> Json:
    """Call `probe` every POLL_S seconds until it returns a value, and return that.

    Raises StepFailed after the timeout.
    """
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if value := probe():
            return value
        time.sleep(POLL_S)
    raise StepFailed(f"{event} did not happen within {timeout_s:.0f} s: see the logs in the data folder.")
