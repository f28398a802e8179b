"""Registered adapters by name, with the weights of the most recently used ones in memory."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from serving_client.engine.adapters.adapter import Adapter
from serving_client.engine.errors import (
    AdapterMissing,
    AdapterUnusable,
    ApiError,
    add_lora_failed,
    internal,
    invalid_input,
    not_found,
)
from serving_client.engine.short_lived_thread import in_passing_thread


@dataclass(frozen=True)
class Registered:
    """Registration of a loaded adapter; its weights may have been evicted from memory."""

    name: str
    path: str


class AdapterPool:
    """The adapters that the engine serves by name; the weights of the most recently used are in memory. Thread-safe.

    At most `max_in_memory` adapters' weights are kept; others are read again when they are needed. Running requests
    keep the weights that they began with. No adapter may have the name `base_name`. `read_adapter` takes a name and a
    folder and raises AdapterMissing or AdapterUnusable.
    """

    def __init__(self, base_name: str, read_adapter: Callable[[str, Path], Adapter], *, max_in_memory: int) -> None:
        self._base_name = base_name
        self._read_adapter = read_adapter
        self._max_in_memory = max_in_memory
        self._registered: dict[str, Registered] = {}
        self._in_memory: OrderedDict[Registered, Adapter] = OrderedDict()
        self._lock = threading.Lock()

    def load(self, name: str, path: str, *, replace: bool = False) -> None:
        """Read an adapter from the folder `path` and register it; with `replace` it replaces one of the same name.

        Raises ApiError with vLLM's status and text for a taken name or a folder that cannot be served.
        """
        self._check_name(name, replace)
        entry = Registered(name, path)
        adapter = self._read_first(entry)
        with self._lock:
            self._check_name(name, replace)
            self._in_memory.pop(self._registered.get(name, entry), None)
            self._registered[name] = entry
            self._keep(entry, adapter)

    def unload(self, name: str) -> None:
        """Remove an adapter and its weights from memory; its folder stays. Raises ApiError 404 for an unknown name."""
        with self._lock:
            if name not in self._registered:
                raise not_found(f"The lora adapter '{name}' cannot be found.")
            self._in_memory.pop(self._registered.pop(name), None)

    def get(self, name: str) -> Adapter:
        """Return the adapter with its weights, read again from its folder if they were evicted from memory.

        Raises KeyError for an unknown name, and ApiError 500 if the folder cannot be read any more.
        """
        with self._lock:
            entry = self._registered[name]
            adapter = self._in_memory.get(entry)
            if adapter is not None:
                self._in_memory.move_to_end(entry)
                return adapter
        return self._read_again(entry)

    def registered(self) -> list[Registered]:
        """Return all loaded adapters, in the order of loading."""
        with self._lock:
            return list(self._registered.values())

    def _check_name(self, name: str, replace: bool) -> None:
        if name == self._base_name:
            raise invalid_input(f"The lora adapter '{name}' conflicts with a served base model.")
        if name in self._registered and not replace:
            raise invalid_input(
                f"The lora adapter '{name}' has already been loaded. "
                "If you want to load the adapter in place, set 'load_inplace' to True."
            )

    def _read_first(self, entry: Registered) -> Adapter:
        try:
            return self._read(entry)
        except AdapterMissing as error:
            # vLLM does not tell the path to the client either.
            raise not_found(f"Loading lora {entry.name} failed: No adapter found for <path>") from error
        except AdapterUnusable as error:
            raise add_lora_failed(str(error)) from error

    def _read_again(self, entry: Registered) -> Adapter:
        try:
            adapter = self._read(entry)
        except AdapterUnusable as error:
            raise _vanished(entry, error) from error
        with self._lock:
            # Two requests may read it at once; both must use the same object, so that it takes one slot in the batch.
            adapter = self._in_memory.get(entry, adapter)
            if self._registered.get(entry.name) == entry:
                self._keep(entry, adapter)
        return adapter

    def _read(self, entry: Registered) -> Adapter:
        return in_passing_thread(lambda: self._read_adapter(entry.name, Path(entry.path)))

    def _keep(self, entry: Registered, adapter: Adapter) -> None:
        self._in_memory[entry] = adapter
        self._in_memory.move_to_end(entry)
        while len(self._in_memory) > self._max_in_memory:
            self._in_memory.popitem(last=False)


def _vanished(entry: Registered, error: AdapterUnusable) -> ApiError:
    return internal(
        f"The lora adapter '{entry.name}' was evicted from memory and cannot be read again from '{entry.path}': "
        f"{error} Restore the folder, or unload the adapter."
    )
