"""Client of one replica of SGLang, started with --enable-lora."""

from __future__ import annotations

import functools
from typing import Any

from serving_client.engine_client import NOT_THE_ADAPTER, Answer, EngineClient, error_message, is_success
from serving_client.exceptions import (
    AdapterAlreadyLoaded,
    AdapterNotLoaded,
    EngineError,
    EngineFailed,
    EngineRejected,
)


class SglangClient(EngineClient):
    """Client of one replica of SGLang.

    SGLang scales every layer by the configuration's alpha / r: give it the portable export, in which all modules have
    one rank and the scale 1. It answers each refused load with 400, and unloads once the running answers have ended.
    """

    def version(self) -> str:
        """Return the engine's version."""
        answer = self._json("GET", "/get_server_info")
        with self._understood():
            return str(answer["version"])

    def load_adapter(self, name: str, path: str) -> None:
        """Load the folder `path`, on the replica's disk, as `name`.

        Raises AdapterAlreadyLoaded for a taken name, EngineFailed if the engine is broken or overloaded, and
        EngineRejected for any other refusal.
        """
        response = self._send("POST", "/load_lora_adapter", {"lora_name": name, "lora_path": path})
        if is_success(response):
            return
        message = error_message(response)
        if f"LoRA with name {name} already exists" in message:
            raise AdapterAlreadyLoaded(message)
        if response.status in NOT_THE_ADAPTER or response.status == 500:
            raise EngineFailed(message)
        raise EngineRejected(message)

    def unload_adapter(self, name: str) -> None:
        """Unload `name` after its running answers.

        Raises AdapterNotLoaded for an unknown name, and EngineFailed for any other error response.
        """
        response = self._send("POST", "/unload_lora_adapter", {"lora_name": name})
        if is_success(response):
            return
        message = error_message(response)
        raise AdapterNotLoaded(message) if "does not exist" in message else EngineFailed(message)

    @functools.cached_property
    def base(self) -> str:
        """The base model's name, asked of the replica once. Raises EngineError if it does not answer as an engine."""
        return next(model.name for model in self.models() if model.parent is None)

    def _naming(self, model: str) -> dict[str, Any]:
        return {"model": model if model == self.base else f"{self.base}:{model}"}

    def _completion_error(self, response: Answer) -> EngineError:
        message = error_message(response)
        return AdapterNotLoaded(message) if "are not loaded" in message else super()._completion_error(response)
