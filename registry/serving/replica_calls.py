"""Calls to replicas, many at once and without the database: what they answer goes back to the thread that writes.

One slow or dead replica costs the others nothing but one of `AT_ONCE` threads for its timeout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import TypeVar

from serving_client import AdapterAlreadyLoaded, AdapterNotLoaded, EngineClient, EngineError, EngineRejected

AT_ONCE = 64
# A look is small; a load reads weights from disk and builds them in.
LOOK_TIMEOUT_S, LOAD_TIMEOUT_S = 5.0, 60.0
# Many positions, and yet fewer than the shortest context that is served: an engine refuses what is longer.
PROBE = "The purpose of this text is to be long enough that a broken adapter shows itself. " * 4

Key = TypeVar("Key")
Told = TypeVar("Told")


@dataclass(frozen=True)
class ReplicaReport:
    """What a replica reported: served name -> path, the engine's version; or why there is no report."""

    reported: dict[str, str]
    engine_version: str = ""
    trouble: str = ""


@dataclass(frozen=True)
class LoadRequest:
    """A version to hold from `path`; `held_from` is where the replica holds the name from now, None = not at all."""

    name: str
    path: str
    held_from: str | None


@dataclass(frozen=True)
class Loaded:
    """`refusal` is for good; `trouble` says that the replica does not answer as it should."""

    name: str
    path: str
    refusal: str = ""
    trouble: str = ""


def each(calls: Iterable[tuple[Key, Callable[[], Told]]]) -> Iterator[tuple[Key, Told]]:
    """(key, what its call returned), in the order in which they end."""
    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="replica") as threads:
        running = {threads.submit(call): key for key, call in calls}
        for done in as_completed(running):
            yield running[done], done.result()


def look(url: str, base: str) -> ReplicaReport:
    """What the replica holds, if it serves the base model."""
    try:
        with EngineClient(url, timeout_s=LOOK_TIMEOUT_S) as engine:
            models, version = engine.models(), engine.version()
    except EngineError as error:
        return ReplicaReport({}, trouble=str(error))
    if base not in {model.name for model in models if model.parent is None}:
        names = ", ".join(model.name for model in models) or "nothing"
        return ReplicaReport({}, trouble=f"It serves {names}, not {base}.")
    return ReplicaReport({model.name: model.root for model in models if model.parent is not None}, version)


def push(url: str, wishes: list[LoadRequest]) -> list[Loaded]:
    """Load and probe one after the other; nothing more is asked of a replica that has trouble."""
    told: list[Loaded] = []
    with EngineClient(url, timeout_s=LOAD_TIMEOUT_S) as engine:
        for wish in wishes:
            told.append(load(engine, wish))
            if told[-1].trouble:
                break
    return told


def load(engine: EngineClient, wish: LoadRequest) -> Loaded:
    """A version that is refused or fails its probe is not left behind."""
    try:
        load_once(engine, wish)
        probe(engine, wish.name)
    except EngineRejected as error:
        take_out(engine, wish.name)
        return Loaded(wish.name, wish.path, refusal=str(error))
    except EngineError as error:
        return Loaded(wish.name, wish.path, trouble=str(error))
    return Loaded(wish.name, wish.path)


def load_once(engine: EngineClient, wish: LoadRequest) -> None:
    """Under this name from this path. A load whose answer was lost may have come about all the same."""
    if wish.held_from == wish.path:
        return
    if wish.held_from is not None:
        # Those are not the weights that the digest names.
        take_out(engine, wish.name)
    try:
        engine.load_adapter(wish.name, wish.path)
    except AdapterAlreadyLoaded:
        held = {model.name: model.root for model in engine.models()}
        if held.get(wish.name) != wish.path:
            raise


def probe(engine: EngineClient, name: str) -> None:
    """A prompt through the new adapter: broken weights answer with numbers that are not finite."""
    if not engine.is_finite(name, PROBE):
        raise EngineRejected(f"The probe of {name} gave no finite answer.")


def remove(url: str, names: Iterable[str]) -> set[str]:
    """Unload; those that are gone now."""
    with EngineClient(url, timeout_s=LOAD_TIMEOUT_S) as engine:
        return {name for name in names if take_out(engine, name)}


def take_out(engine: EngineClient, name: str) -> bool:
    """Whether the name is gone; one that was not there is as good."""
    try:
        engine.unload_adapter(name)
    except AdapterNotLoaded:
        return True
    except EngineError:
        return False
    return True
