"""Thread of the engine: admits waiting requests, then adds a token to all running ones, again and again."""

from __future__ import annotations

import logging
import threading
from collections import deque
from dataclasses import dataclass

import torch

from serving_client.engine.batching.batch import RunningBatch
from serving_client.engine.batching.sequence import Sequence

log = logging.getLogger(__name__)

# Prompt tokens, padding included, that one forward reads while the running requests wait. A GPU reads four times as
# many in hardly more time: on an H200 with 32 adapters in an 8B model 23,565 a second in place of 9,746.
PROMPT_TOKENS = {"cpu": 512, "cuda": 2048}
# A request whose adapter has no free slot lets others pass for this many steps; then all wait for it.
PATIENCE_STEPS = 64


@dataclass(frozen=True)
class Load:
    """Load of the engine: the adapter names of running and waiting requests, and token totals since the start."""

    running: tuple[str, ...]  # adapter name of each running request, "" for the base model
    waiting: tuple[str, ...]
    prompt_tokens: int
    generated_tokens: int


class GenerationLoop:
    """The loop that runs a batch of at most `max_batch` requests in its own thread.

    `submit` may be called from any thread. `threads` is the number of PyTorch's threads, None for its own choice.
    """

    def __init__(self, batch: RunningBatch, *, max_batch: int, threads: int | None = None) -> None:
        self._batch = batch
        self._max_batch = max_batch
        self._threads = threads
        self._waiting: deque[Sequence] = deque()
        self._changed = threading.Condition()
        self._is_closing = False
        self._ended: str | None = None  # why the thread has ended
        self._prompt_tokens = 0
        self._generated_tokens = 0
        self._thread = threading.Thread(target=self._run, name="generation", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """End the thread after its current step and wait for it; open requests fail."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        self._thread.join()

    @property
    def is_alive(self) -> bool:
        """False once the thread has ended or accepts no more requests, whatever the reason."""
        return self._ended is None and self._thread.is_alive()

    def submit(self, sequence: Sequence) -> None:
        """Queue a request; fail it at once if the thread has ended."""
        with self._changed:
            if self._ended is None:
                self._waiting.append(sequence)
                self._changed.notify()
                return
        sequence.fail(self._ended)

    def load(self) -> Load:
        """Return the adapters of running and waiting requests, and the totals of tokens since the start."""
        with self._changed:
            waiting = tuple(_adapter_name(sequence) for sequence in self._waiting)
        # A finished request keeps its row to the end of the step, but its client has the answer already.
        running = tuple(_adapter_name(sequence) for sequence in list(self._batch.rows) if not sequence.is_finished)
        return Load(running, waiting, self._prompt_tokens, self._generated_tokens)

    def _run(self) -> None:
        if self._threads:
            torch.set_num_threads(self._threads)
        try:
            with torch.inference_mode():
                while self._wait_for_work():
                    self._work()
            reason = "The engine is shutting down."
        except Exception as error:
            log.critical("The generation thread died", exc_info=True)
            reason = f"The engine has stopped: {error}"
        self._fail_all(reason)

    def _wait_for_work(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._is_closing or self._waiting or self._batch.rows)
            return not self._is_closing

    def _work(self) -> None:
        self._batch.drop_finished()
        if joining := self._admit():
            self._prompt_tokens += sum(len(sequence.prompt) for sequence in joining)
            self._generated_tokens += len(joining)
            self._batch.join(joining)
            self._batch.drop_finished()
        if self._batch.rows:
            self._generated_tokens += len(self._batch.rows)
            self._batch.step()
            self._batch.drop_finished()

    def _admit(self) -> list[Sequence]:
        joining: list[Sequence] = []
        with self._changed:
            self._waiting = deque(sequence for sequence in self._waiting if not sequence.is_cancelled)
            for sequence in list(self._waiting):
                if len(self._batch.rows) + len(joining) >= self._max_batch or self._is_full(joining, sequence):
                    break
                if self._find_room(sequence, joining):
                    joining.append(sequence)
                elif sequence.steps_without_room >= PATIENCE_STEPS:
                    break
                else:
                    sequence.steps_without_room += 1
            for sequence in joining:
                self._waiting.remove(sequence)
        return joining

    def _find_room(self, sequence: Sequence, joining: list[Sequence]) -> bool:
        if sequence.adapter is None:
            return True
        busy = {other.adapter for other in (*self._batch.rows, *joining) if other.adapter}
        return self._batch.residents.admit(sequence.adapter, busy)

    def _is_full(self, joining: list[Sequence], sequence: Sequence) -> bool:
        if joining and (joining[0].params.prompt_logprobs is None) != (sequence.params.prompt_logprobs is None):
            # Logits of whole prompts are computed for those alone that want them.
            return True
        longest = max(len(other.prompt) for other in (*joining, sequence))
        return bool(joining) and longest * (len(joining) + 1) > PROMPT_TOKENS[self._batch.device.type]

    def _fail_all(self, reason: str) -> None:
        with self._changed:
            self._ended = reason
            waiting, self._waiting = list(self._waiting), deque()
        for sequence in (*self._batch.rows, *waiting):
            if not sequence.is_finished:
                sequence.fail(reason)


def _adapter_name(sequence: Sequence) -> str:
    return sequence.adapter.name if sequence.adapter else ""
