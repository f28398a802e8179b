"""Client of one replica of TensorRT-LLM's `trtllm-serve`, where each request names its adapter's folder."""

from __future__ import annotations

import functools
import hashlib
from typing import Any

from serving_client.engine_client import EngineClient, LoadedModel
from serving_client.exceptions import AdapterAlreadyLoaded, AdapterNotLoaded


class TensorRtClient(EngineClient):
    """Client of one replica of TensorRT-LLM; it remembers the folder of each adapter itself, as the replica does not.

    A load therefore proves nothing before the first completion, which may refuse the adapter.
    """

    def __init__(self, base_url: str, *, timeout_s: float = 30.0, key: str = "") -> None:
        super().__init__(base_url, timeout_s=timeout_s, key=key)
        self._paths: dict[str, str] = {}

    def models(self) -> list[LoadedModel]:
        """List the base model and the adapters that this client was given."""
        return super().models() + [LoadedModel(name, path, self.base) for name, path in self._paths.items()]

    def load_adapter(self, name: str, path: str) -> None:
        """Remember the folder of `name`; nothing is sent. Raises AdapterAlreadyLoaded if it has another folder."""
        if self._paths.setdefault(name, path) != path:
            raise AdapterAlreadyLoaded(f"{name} is loaded from {self._paths[name]}.")

    def unload_adapter(self, name: str) -> None:
        """Forget the folder of `name`. Raises AdapterNotLoaded for a name that this client was not given."""
        if self._paths.pop(name, None) is None:
            raise AdapterNotLoaded(f"{name} is not known here.")

    @functools.cached_property
    def base(self) -> str:
        """The base model's name, asked of the replica once. Raises EngineError if it does not answer as an engine."""
        return super().models()[0].name

    def _naming(self, model: str) -> dict[str, Any]:
        if model == self.base:
            return {"model": model}
        if model not in self._paths:
            raise AdapterNotLoaded(f"{model} is not known here.")
        request = {"lora_name": model, "lora_int_id": number_of(model), "lora_path": self._paths[model]}
        return {"model": self.base, "lora_request": request}


def number_of(name: str) -> int:
    """Return a number from 1 to 2**31 - 1 made of the name, by which the engine caches weights.

    All clients make the same number of a name.
    """
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") % (2**31 - 1) + 1
