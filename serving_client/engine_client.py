"""One replica of an engine that speaks vLLM's API: load, unload, list, probe."""

from __future__ import annotations

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

    def __init__(
        self, base_url: str, *, timeout_s: float = 30.0, transport: httpx.BaseTransport | None = None
    ) -> None:
        self._http = httpx.Client(base_url=base_url, timeout=timeout_s, transport=transport)

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
        return str(self._json("GET", "/version")["version"])

    def models(self) -> list[LoadedModel]:
        """The base model and every adapter that the replica knows by name."""
        rows = self._json("GET", "/v1/models")["data"]
        return [LoadedModel(row["id"], row["root"], row.get("parent")) for row in rows]

    def load_adapter(self, name: str, path: str) -> None:
        """Load the folder `path` as `name`. Raises AdapterAlreadyLoaded, EngineRejected, EngineUnreachable."""
        response = self._send("POST", "/v1/load_lora_adapter", {"lora_name": name, "lora_path": path})
        if response.is_success:
            return
        message = error_message(response)
        if response.status_code == httpx.codes.BAD_REQUEST and "already been loaded" in message:
            raise AdapterAlreadyLoaded(message)
        # vLLM answers 500 to every adapter that it cannot use: sending it again would fail again.
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
        answer = response.json()
        text = answer["choices"][0]["text"]
        # Weights that are not finite make vLLM repeat one token, "!", for ever.
        return Completion(text, answer["usage"]["completion_tokens"], finite=bool(text.replace("!", "")))

    def _json(self, method: str, path: str) -> Any:
        response = self._send(method, path)
        if not response.is_success:
            raise EngineFailed(error_message(response))
        return response.json()

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
