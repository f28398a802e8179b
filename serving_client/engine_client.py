"""One replica of an engine that speaks vLLM's API: load, unload, list, probe."""

from __future__ import annotations

import functools
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import httpx

from serving_client.exceptions import (
    AdapterAlreadyLoaded,
    AdapterNotLoaded,
    EngineFailed,
    EngineRejected,
    EngineUnreachable,
)

# Overloaded, starting, or behind a proxy that lost it.
NOT_THE_ADAPTER = {429, 502, 503, 504}


@functools.cache
def tls() -> ssl.SSLContext:
    """One for all clients: reading the certificates takes longer than a call."""
    return httpx.create_ssl_context()


@dataclass(frozen=True)
class LoadedModel:
    """A row of /v1/models: `root` is the path it was loaded from, `parent` the base model of an adapter."""

    name: str
    root: str
    parent: str | None


@dataclass(frozen=True)
class Completion:
    """An answer; `finite` is false when the engine's numbers were not."""

    text: str
    completion_tokens: int
    finite: bool


class EngineClient:
    """Calls to one replica, never through a load balancer. Nothing is retried here.

    `timeout_s` bounds each call; a load reads weights from disk and may take seconds.
    """

    def __init__(self, base_url: str, *, timeout_s: float = 30.0, transport: httpx.BaseTransport | None = None) -> None:
        self._http = httpx.Client(base_url=base_url, timeout=timeout_s, transport=transport, verify=tls())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def health(self) -> bool:
        """True when the engine says that it can serve."""
        return self._send("GET", "/health").status_code == httpx.codes.OK

    def version(self) -> str:
        """The engine's version."""
        answer = self._json("GET", "/version")
        with self._understood():
            return str(answer["version"])

    def models(self) -> list[LoadedModel]:
        """The base model and every adapter that the replica knows by name."""
        answer = self._json("GET", "/v1/models")
        with self._understood():
            return [LoadedModel(row["id"], row["root"], row.get("parent")) for row in answer["data"]]

    def load_adapter(self, name: str, path: str) -> None:
        """Load the folder `path` as `name`. Raises AdapterAlreadyLoaded, EngineRejected, EngineFailed."""
        response = self._send("POST", "/v1/load_lora_adapter", {"lora_name": name, "lora_path": path})
        if response.is_success:
            return
        message = error_message(response)
        if response.status_code == httpx.codes.BAD_REQUEST and "already been loaded" in message:
            raise AdapterAlreadyLoaded(message)
        # vLLM answers 500 to an adapter that it cannot use and also when its core died: only the first is for good.
        if response.status_code in NOT_THE_ADAPTER or "EngineCore" in message:
            raise EngineFailed(message)
        raise EngineRejected(message)

    def unload_adapter(self, name: str) -> None:
        """Forget `name`; answers that run with it end undisturbed. Raises AdapterNotLoaded."""
        response = self._send("POST", "/v1/unload_lora_adapter", {"lora_name": name})
        if response.status_code == httpx.codes.NOT_FOUND:
            raise AdapterNotLoaded(error_message(response))
        if not response.is_success:
            raise EngineFailed(error_message(response))

    def complete(self, model: str, prompt: str, *, max_tokens: int = 16, temperature: float = 0.0) -> Completion:
        """Complete a prompt. Raises AdapterNotLoaded, EngineRejected, EngineFailed."""
        body = {"model": model, "prompt": prompt, "max_tokens": max_tokens, "temperature": temperature}
        response = self._send("POST", "/v1/completions", body)
        if response.status_code == httpx.codes.NOT_FOUND:
            raise AdapterNotLoaded(error_message(response))
        if response.is_client_error:
            raise EngineRejected(error_message(response))
        if not response.is_success:
            raise EngineFailed(error_message(response))
        with self._understood():
            answer = response.json()
            text, tokens = answer["choices"][0]["text"], answer["usage"]["completion_tokens"]
        # Weights that are not finite make vLLM repeat token 0 for ever: "!" in most vocabularies, the end in some.
        return Completion(text, tokens, finite=bool(text.replace("!", "")))

    def _json(self, method: str, path: str) -> Any:
        response = self._send(method, path)
        if not response.is_success:
            raise EngineFailed(error_message(response))
        with self._understood():
            return response.json()

    @contextmanager
    def _understood(self) -> Iterator[None]:
        """Whatever answers at this address with something else is no engine that can be used."""
        try:
            yield
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise EngineFailed(f"{self._http.base_url} answers, but not as an engine: {error!r}.") from error

    def _send(self, method: str, path: str, body: dict[str, Any] | None = None) -> httpx.Response:
        try:
            return self._http.request(method, path, json=body)
        except httpx.HTTPError as error:
            raise EngineUnreachable(f"{self._http.base_url} does not answer: {error}") from error


def error_message(response: httpx.Response) -> str:
    """The engine's own words, or its status when it has none."""
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"HTTP {response.status_code}: {response.text[:200]}"
