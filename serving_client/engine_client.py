"""Client of one replica whose engine has vLLM's API: load, unload and list adapters, and probe the model."""

from __future__ import annotations

import functools
import json
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import NoneType, TracebackType
from typing import Any, Self

import httpx
import urllib3
from urllib3.exceptions import HTTPError

from serving_client.bounded_answers import bounded_pool
from serving_client.engine.errors import NOT_FINITE
from serving_client.exceptions import (
    AdapterAlreadyLoaded,
    AdapterNotLoaded,
    EngineError,
    EngineFailed,
    EngineRejected,
    EngineUnreachable,
)

# Statuses of a replica that is overloaded, starting, or unreachable behind a proxy: the adapter is not the cause.
NOT_THE_ADAPTER = {429, 502, 503, 504}
# A replica's answer is a list of models or a short text: one without end, or one that unfolds, must fill no memory.
MOST_ANSWER_BYTES = 16 * 2**20
# Idle connections kept to one replica, for callers with several threads.
POOL_SIZE = 10


@functools.cache
def tls() -> ssl.SSLContext:
    """Return the TLS context that all clients share: reading the certificates takes longer than a call."""
    return httpx.create_ssl_context()


@dataclass(frozen=True)
class LoadedModel:
    """A row of /v1/models: a base model or an adapter.

    `root` is the path that it was loaded from, "" if the engine does not tell it; `parent` is the base model's name for
    an adapter, None for a base model. `max_length` is the most tokens of a request and its answer together; None if the
    engine does not tell it.
    """

    name: str
    root: str
    parent: str | None
    max_length: int | None = None


@dataclass(frozen=True)
class Completion:
    """A completion's text and token count; `token_ids` is None if the engine does not return them."""

    text: str
    completion_tokens: int
    token_ids: list[int] | None


@dataclass(frozen=True)
class Answer:
    """A replica's answer: its status, and its body."""

    status: int
    data: bytes


class EngineClient:
    """Client of one replica, never through a load balancer or a proxy. Nothing is retried here. Thread-safe.

    `timeout_s` bounds the wait for a connection, and again that for the whole answer, also one that comes a byte at a
    time; a load reads weights from disk and may take seconds. `key` is the engine's API key, "" if it asks for none.
    Every call raises EngineUnreachable if the replica does not answer, and EngineFailed if the answer cannot be
    understood.
    """

    def __init__(self, base_url: str, *, timeout_s: float = 30.0, key: str = "") -> None:
        self.url = base_url.rstrip("/")
        self._headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
        # Not httpx, whose calls take four times the CPU: the control loop asks a thousand replicas.
        secure = {"ssl_context": tls()} if self.url.startswith("https:") else {}
        self._pool = bounded_pool(self.url, maxsize=POOL_SIZE, timeout=timeout_s, **secure)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.close()

    def health(self) -> bool:
        """Return True if the engine answers 200: it can serve; False for any other status."""
        return self._send("GET", "/health").status == 200

    def version(self) -> str:
        """Return the engine's version."""
        answer = self._json("GET", "/version")
        with self._understood():
            return str(answer["version"])

    def models(self) -> list[LoadedModel]:
        """Return the base model and every adapter that the replica knows by name."""
        answer = self._json("GET", "/v1/models")
        with self._understood():
            return [
                LoadedModel(
                    name_in(row["id"]),
                    name_in(row.get("root") or ""),
                    row.get("parent"),
                    positive(row.get("max_model_len")),
                )
                for row in answer["data"]
            ]

    def load_adapter(self, name: str, path: str) -> None:
        """Load the folder `path`, on the replica's disk, as `name`.

        Raises AdapterAlreadyLoaded for a taken name, EngineFailed if the engine is overloaded, starting or broken, and
        EngineRejected for any other refusal, which will be the same the next time.
        """
        response = self._send("POST", "/v1/load_lora_adapter", {"lora_name": name, "lora_path": path})
        if is_success(response):
            return
        message = error_message(response)
        if response.status == 400 and "already been loaded" in message:
            raise AdapterAlreadyLoaded(message)
        # vLLM answers 500 to an adapter that it cannot use and also when its core died: only the first is permanent.
        if response.status in NOT_THE_ADAPTER or "EngineCore" in message:
            raise EngineFailed(message)
        raise EngineRejected(message)

    def unload_adapter(self, name: str) -> None:
        """Unload `name`; running answers finish with it.

        Raises AdapterNotLoaded for an unknown name, and EngineFailed for any other error response.
        """
        response = self._send("POST", "/v1/unload_lora_adapter", {"lora_name": name})
        if response.status == 404:
            raise AdapterNotLoaded(error_message(response))
        if not is_success(response):
            raise EngineFailed(error_message(response))

    def complete(
        self, model: str, prompt: str, *, max_tokens: int = 16, temperature: float = 0.0, **fields: Any
    ) -> Completion:
        """Return the completion of a prompt; `fields` are further fields of the request.

        Raises AdapterNotLoaded for an unknown model, EngineRejected if the engine refuses the request or answers that
        the weights compute NaN, and EngineFailed for any other error response.
        """
        body = {"prompt": prompt, "max_tokens": max_tokens, "temperature": temperature, **fields}
        response = self._send("POST", "/v1/completions", self._naming(model) | body)
        if not is_success(response):
            raise self._completion_error(response)
        with self._understood():
            answer = json.loads(response.data)
            choice = answer["choices"][0]
            tokens = of_kind(answer["usage"]["completion_tokens"], int)
            return Completion(of_kind(choice["text"], str), tokens, of_kind(choice.get("token_ids"), list, NoneType))

    def prompt_logprobs(self, model: str, tokens: list[int]) -> list[float]:
        """Return the log-probability of each token but the first, given those before it.

        Raises what `complete` raises.
        """
        body = {"prompt": tokens, "max_tokens": 1, "temperature": 0, "prompt_logprobs": 1}
        response = self._send("POST", "/v1/completions", self._naming(model) | body)
        if not is_success(response):
            raise self._completion_error(response)
        with self._understood():
            entries = json.loads(response.data)["choices"][0]["prompt_logprobs"]
            if len(entries) != len(tokens):
                raise ValueError("another number of tokens")
            pairs = zip(entries[1:], tokens[1:], strict=True)
            return [float(entry[str(token)]["logprob"]) for entry, token in pairs]

    def is_finite(self, model: str, prompt: str) -> bool:
        """Return True if the model computes finite numbers for the prompt, judged by its answers; else False.

        Raises what `complete` raises: an engine that itself reports NaN gives EngineRejected in place of False.

        With NaN or infinity vLLM repeats token 0 for ever, which in most vocabularies is "!" and in some the end of
        text or nothing readable. A sound model may answer the same, so such an answer is followed by a request that
        biases token 0 away: a sound model then answers with another token, while NaN is not changed by a bias.
        """
        if is_telling(self.complete(model, prompt, max_tokens=4).text):
            return True
        options: dict[str, Any] = {"logit_bias": {"0": -100}, "ignore_eos": True, "return_token_ids": True}
        answer = self.complete(model, prompt, max_tokens=4, **options)
        return is_telling(answer.text) if answer.token_ids is None else any(answer.token_ids)

    def _naming(self, model: str) -> dict[str, Any]:
        """Return the fields of a completion's body that select the model."""
        return {"model": model}

    def _completion_error(self, response: Answer) -> EngineError:
        message = error_message(response)
        if response.status == 404:
            return AdapterNotLoaded(message)
        is_refusal = response.status < 500 or message == NOT_FINITE
        return EngineRejected(message) if is_refusal else EngineFailed(message)

    def _json(self, method: str, path: str) -> Any:
        response = self._send(method, path)
        if not is_success(response):
            raise EngineFailed(f"{self.url} answers {response.status} to {method} {path}.")
        with self._understood():
            return json.loads(response.data)

    @contextmanager
    def _understood(self) -> Iterator[None]:
        """Convert parsing errors inside the block to EngineFailed: the address answers, but not as an engine does."""
        try:
            yield
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise EngineFailed(f"{self.url} answers, but not as an engine ({type(error).__name__}).") from error

    def _send(self, method: str, path: str, body: dict[str, Any] | None = None) -> Answer:
        try:
            response = self._pool.urlopen(
                method,
                urllib3.util.parse_url(self.url + path).request_uri,
                body=None if body is None else json.dumps(body).encode(),
                headers=self._headers,
                retries=False,
                redirect=False,
                preload_content=False,
                decode_content=False,
            )
            return self._read(response)
        except HTTPError as error:
            raise EngineUnreachable(f"{self.url} does not answer: {error}") from error

    def _read(self, response: urllib3.BaseHTTPResponse) -> Answer:
        """Read the body, as it is on the wire. Raises EngineFailed for one that is too long."""
        content = response.read(MOST_ANSWER_BYTES + 1, decode_content=False)
        if len(content) > MOST_ANSWER_BYTES:
            response.close()
            raise EngineFailed(f"{self.url} sends more than {MOST_ANSWER_BYTES >> 20} MB: it is no engine's answer.")
        response.release_conn()
        return Answer(response.status, content)


def is_telling(text: str) -> bool:
    """Return True if the text holds anything but exclamation marks, which models with broken weights repeat."""
    return bool(text.replace("!", ""))


def is_success(response: Answer) -> bool:
    """Return True for a status from 200 to 299."""
    return 200 <= response.status < 300


def error_message(response: Answer) -> str:
    """Return the engine's error message, or only the status if the body is not an engine's error."""
    try:
        return message_in(json.loads(response.data))
    except (ValueError, KeyError, TypeError, RecursionError):
        return f"HTTP {response.status} without an error message."


def message_in(body: Any) -> str:
    """Return the message in an error's body of vLLM, TensorRT-LLM or SGLang.

    Raises KeyError or TypeError for another body.
    """
    if "error" in body:
        return str(body["error"]["message"])
    return str(body["error_message"] if "error_message" in body else body["message"])


def of_kind(value: Any, *kinds: type) -> Any:
    """Return the value if it is of one of the kinds. Raises TypeError if not."""
    if not isinstance(value, kinds):
        raise TypeError(f"{type(value).__name__} is not expected here")
    return value


def name_in(value: Any) -> str:
    """Return the value if it is a text that can be stored.

    Raises TypeError if it is no text, and ValueError for a text with a NUL or half of a surrogate pair.
    """
    name: str = of_kind(value, str)
    if "\0" in name:
        raise ValueError("a NUL is in no name")
    # Half of a character cannot be encoded.
    name.encode()
    return name


def positive(value: Any) -> int | None:
    """Return the value if it is a whole number from 1 to 2**31 - 1; None for anything else."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**31 else None
