"""Concurrent calls to replicas, without database access: the caller's thread gets the results and stores them.

A slow or dead replica delays no other; it only occupies one of AT_ONCE threads until its timeout.
"""

from __future__ import annotations

import queue
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

from adapterhub.core.errors import Invalid, Unavailable
from adapterhub.outbound import Forbidden, require_engine
from serving_client import AdapterAlreadyLoaded, AdapterNotLoaded, EngineClient, EngineError, EngineRejected

AT_ONCE = 64
# Results are handed over in lists of up to TOGETHER, which wait for no result longer than LINGER_S.
TOGETHER, LINGER_S = 50, 0.05
VERSION = re.compile(r"[\w.+-]{1,60}")
# A query is quick, an unload too; a load reads weights from disk and installs them in the engine.
INSPECT_TIMEOUT_S, UNLOAD_TIMEOUT_S, LOAD_TIMEOUT_S = 5.0, 10.0, 60.0
# Loads of one replica. A load, and its probe even more, waits for the engine's steps: side by side they wait together.
LOADS_AT_ONCE = 4
# Long enough to exercise many positions, but shorter than the shortest served context, which engines enforce.
PROBE = "The purpose of this text is to be long enough that a broken adapter shows itself. " * 4

Key = TypeVar("Key")
Told = TypeVar("Told")


@dataclass(frozen=True)
class Engine:
    """The address of an engine, and the API key that it requires; "" for none."""

    url: str
    key: str = field(default="", repr=False)

    def client(self, timeout_s: float) -> EngineClient:
        """Return a client of the engine, to be used as a context manager."""
        return EngineClient(self.url, timeout_s=timeout_s, key=self.key)


@dataclass(frozen=True)
class ReplicaReport:
    """A replica's report: its adapters (served name -> path) and engine version, or the problem why there is none.

    `problem` is "" if it answered as it should. `endpoints` are the resolved addresses of its URL, with port and path.
    `engine_text` are the words of what answered, for the operators' log only. `max_length` is the number of tokens of a
    request with its answer that the engine serves, None if it does not report that.
    """

    reported: dict[str, str]
    engine_version: str = ""
    problem: str = ""
    endpoints: tuple[str, ...] = ()
    engine_text: str = ""
    max_length: int | None = None


@dataclass(frozen=True)
class LoadRequest:
    """A version to load from `path`; `loaded_from` is the path that the name is loaded from now, None if not loaded.

    `is_repeated`: the replica took it before, answered all the time, and does not list it from this path.
    """

    name: str
    path: str
    loaded_from: str | None
    is_repeated: bool = False


@dataclass(frozen=True)
class Loaded:
    """The result of a load: a `refusal` is final; `problem` means that the replica does not answer as it should.

    Both are "" for a success. `engine_text` are the words of what answered, for the operators' log only.
    """

    name: str
    path: str
    refusal: str = ""
    problem: str = ""
    engine_text: str = ""


def each(calls: Iterable[tuple[Key, Callable[[], Told]]]) -> Iterator[list[tuple[Key, Told]]]:
    """Run the calls in parallel and yield lists of (key, result), in the order in which the calls finish.

    An error of a call is raised here.
    """

    def giving(call: Callable[[], Told]) -> Callable[[Callable[[Told], None]], None]:
        return lambda give: give(call())

    return stream((key, giving(call)) for key, call in calls)


def stream(
    calls: Iterable[tuple[Key, Callable[[Callable[[Told], None]], None]]],
) -> Iterator[list[tuple[Key, Told]]]:
    """Run calls that hand over any number of results, and yield lists of (key, result), in the order of the results.

    Each call gets the function that takes its results, which may be called from any thread. An error of a call is
    raised here.
    """
    events: queue.SimpleQueue[tuple[Key, Told] | Future[None]] = queue.SimpleQueue()

    def taking(key: Key) -> Callable[[Told], None]:
        return lambda result: events.put((key, result))

    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="replica") as threads:
        running = [threads.submit(call, taking(key)) for key, call in calls]
        for future in running:
            future.add_done_callback(events.put)
        yield from batches(events, len(running))


def batches(
    events: queue.SimpleQueue[tuple[Key, Told] | Future[None]], running: int
) -> Iterator[list[tuple[Key, Told]]]:
    """Yield the results among the events in lists of up to TOGETHER, until `running` calls have ended.

    A list waits no longer than LINGER_S for a further result.
    """
    while running:
        batch: list[tuple[Key, Told]] = []
        end = 0.0
        while running and len(batch) < TOGETHER:
            try:
                event = events.get(timeout=max(0.0, end - time.monotonic()) if batch else None)
            except queue.Empty:
                break
            if isinstance(event, Future):
                event.result()
                running -= 1
            else:
                end = end if batch else time.monotonic() + LINGER_S
                batch.append(event)
        if batch:
            yield batch


def inspect(at: Engine, base: str, allowed: Sequence[str]) -> ReplicaReport:
    """Ask a replica for its adapters and engine version; a failure is the report's `problem` and is not raised.

    It is a problem, too, if the replica does not serve the base model with the slug `base`. `allowed` are the hosts and
    networks that operators allow; another address is not asked. Nothing else is reported from an answer that is not an
    engine's.
    """
    try:
        endpoints = tuple(require_engine(at.url, allowed))
        with at.client(INSPECT_TIMEOUT_S) as engine:
            models, version = engine.models(), engine.version()
    except Forbidden as error:
        return ReplicaReport({}, problem=str(error))
    except EngineError as error:
        return ReplicaReport({}, problem=error.reason, engine_text=error.engine_text)
    served = {model.name: model for model in models if model.parent is None}
    if base not in served:
        return ReplicaReport({}, problem=f"It does not serve {base}.")
    adapters = {model.name: model.root for model in models if model.parent is not None}
    known = version if VERSION.fullmatch(version) else "unknown"
    return ReplicaReport(adapters, known, endpoints=endpoints, max_length=served[base].max_length)


def base_models(url: str, allowed: Sequence[str]) -> dict[str, str]:
    """Ask an engine that a person named for its base models.

    Return a map from their names to where they were loaded from. Raises Invalid for an address that operators do not
    allow, and for one that does not answer as an engine.
    """
    try:
        require_engine(url, allowed)
        with EngineClient(url, timeout_s=INSPECT_TIMEOUT_S) as engine:
            return {model.name: model.root for model in engine.models() if model.parent is None}
    except Forbidden as error:
        raise Invalid(str(error), field="engine", code="forbidden_address") from None
    except EngineError as error:
        raise Invalid(error.reason, field="engine", code="engine_failed") from None


def push(at: Engine, requests: Sequence[LoadRequest], until: float, give: Callable[[Loaded], None]) -> None:
    """Load and probe the versions, LOADS_AT_ONCE side by side, and hand each result to `give` as soon as it is known.

    A refused version does not stop the others. No load begins after the first `problem`, nor after `until` (of
    time.monotonic()).
    """
    # The threads share one iterator, so that each takes the next request that none has taken.
    waiting = iter(requests)
    stopped = threading.Event()

    def load_further(engine: EngineClient) -> None:
        for request in waiting:
            if stopped.is_set() or time.monotonic() > until:
                break
            result = load(engine, request)
            if result.problem:
                stopped.set()
            give(result)

    with at.client(LOAD_TIMEOUT_S) as engine, ThreadPoolExecutor(LOADS_AT_ONCE, thread_name_prefix="load") as threads:
        # This thread is one of them: with a single request, none is started.
        others = [threads.submit(load_further, engine) for _ in range(min(LOADS_AT_ONCE, len(requests)) - 1)]
        load_further(engine)
        for future in others:
            future.result()


def load(engine: EngineClient, request: LoadRequest) -> Loaded:
    """Load and probe a version and return the result.

    A version that is refused or fails its probe is unloaded again.
    """
    try:
        load_once(engine, request)
        probe(engine, request.name)
        if request.is_repeated:
            require_listed(engine, request)
    except EngineRejected as error:
        take_out(engine, request.name)
        return Loaded(request.name, request.path, refusal=error.reason, engine_text=error.engine_text)
    except EngineError as error:
        return Loaded(request.name, request.path, problem=error.reason, engine_text=error.engine_text)
    return Loaded(request.name, request.path)


def load_once(engine: EngineClient, request: LoadRequest) -> None:
    """Load a version from its path, replacing one that was loaded under its name from another path.

    If the engine already holds it from this path, as after a load whose answer was lost, that counts as success. Raises
    EngineRejected, and EngineError if the engine does not answer as it should.
    """
    if request.loaded_from == request.path:
        return
    if request.loaded_from is not None:
        # The name is loaded from another path, so its weights are not those of the digest.
        take_out(engine, request.name)
    try:
        engine.load_adapter(request.name, request.path)
    except AdapterAlreadyLoaded:
        loaded = {model.name: model.root for model in engine.models()}
        if loaded.get(request.name) != request.path:
            raise


def require_listed(engine: EngineClient, request: LoadRequest) -> None:
    """Require that the engine lists what it says that it has loaded, or it would be loaded again in every round.

    Raises EngineRejected if it is not listed from its path, and EngineError if the engine does not answer as it should.
    """
    if request.path not in [model.root for model in engine.models() if model.name == request.name]:
        raise EngineRejected(f"It says that it has loaded {request.name} and does not list it from {request.path}.")


def where_marked(at: Engine, marker: str, path: str, others: Sequence[Engine]) -> int | None:
    """Load the path under the name `marker` and return the index of the first of `others` that lists it; else None.

    The marker is unloaded again. None is returned, too, if the engine `at` does not load it; one of `others` that does
    not answer counts as not listing it.
    """
    with at.client(LOAD_TIMEOUT_S) as engine:
        try:
            engine.load_adapter(marker, path)
        except EngineError:
            return None
        try:
            return next((place for place, other in enumerate(others) if lists(other, marker)), None)
        finally:
            take_out(engine, marker)


def lists(at: Engine, name: str) -> bool:
    """Return True if the engine lists a model of this name; False if it does not or does not answer."""
    try:
        with at.client(INSPECT_TIMEOUT_S) as engine:
            return any(model.name == name for model in engine.models())
    except EngineError:
        return False


def probe(engine: EngineClient, name: str) -> None:
    """Send a prompt through the new adapter.

    Raises EngineRejected if the result is not finite, and EngineError if the engine does not answer as it should.
    """
    if not engine.is_finite(name, PROBE):
        raise EngineRejected(f"The probe of {name} gave no finite result.")


def prompt_logprobs(at: Engine, names: Iterable[str], tokens: list[int]) -> dict[str, list[float]]:
    """Return, by name of the model, the log-probability that the replica computes for each token but the first.

    Raises Unavailable if the replica cannot be reached, refuses, or gives an answer that cannot be
    read.
    """
    try:
        with at.client(LOAD_TIMEOUT_S) as engine:
            return {name: engine.prompt_logprobs(name, tokens) for name in names}
    except EngineError as error:
        raise Unavailable(error.reason) from error


def remove(at: Engine, names: Iterable[str], until: float) -> set[str]:
    """Unload the names and return those that the replica no longer holds, including any that it did not hold before.

    No unload begins after `until` (of time.monotonic()).
    """
    with at.client(UNLOAD_TIMEOUT_S) as engine:
        return {name for name in names if time.monotonic() <= until and take_out(engine, name)}


def take_out(engine: EngineClient, name: str) -> bool:
    """Unload a name; return True if it is gone or was not loaded, False if the engine failed or did not answer."""
    try:
        engine.unload_adapter(name)
    except AdapterNotLoaded:
        return True
    except EngineError:
        return False
    return True
