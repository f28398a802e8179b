"""People who ask again and again, from several threads, and everything they were answered."""

from __future__ import annotations

import itertools
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from tests.waiting import wait_until

THREADS = 4
# Between two questions of one of them: a server that starts meanwhile needs a core, too.
BREATH_S = 0.1
UNTIL_S = 120
PROMPT = "The bank shall report"
COUNT = 12
# The status of a stream that broke after its first byte: nobody may send it again.
CUT = 0


@dataclass(frozen=True)
class Answer:
    status: int
    version: str
    text: str
    response_id: str = ""


class Crowd:
    """Greedy questions to one alias; every answer is kept. Of `streams`, each n-th is one; 0 = none."""

    def __init__(self, router: str, token: str, streams: int = 0) -> None:
        self._streams = streams
        self._client = httpx.Client(base_url=router, timeout=120, headers={"Authorization": f"Bearer {token}"})
        self._numbers = itertools.count()
        self._stopped = threading.Event()
        self.answers: list[Answer] = []

    @contextmanager
    def asking(self) -> Iterator[Crowd]:
        threads = [threading.Thread(target=self._go_on) for _ in range(THREADS)]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            self._stopped.set()
            for thread in threads:
                thread.join()
            self._client.close()

    def until(self, is_met: Callable[[list[Answer]], bool], condition: str) -> None:
        """Wait until answers from now on satisfy `is_met`."""
        start = len(self.answers)
        try:
            wait_until(lambda: is_met(self.answers[start:]), UNTIL_S, condition)
        except AssertionError as error:
            raise AssertionError(f"{error}; answered: {counts_by_version(self.answers[start:])}") from None

    def _go_on(self) -> None:
        while not self._stopped.wait(BREATH_S):
            number = next(self._numbers)
            body = {"model": "compliance", "prompt": PROMPT, "max_tokens": COUNT, "temperature": 0}
            is_stream = self._streams > 0 and number % self._streams == 0
            send = self._listen if is_stream else self._ask
            self.answers.append(send(body | {"user": f"user-{number}"}))

    def _ask(self, body: dict[str, Any]) -> Answer:
        answer = self._client.post("/v1/completions", json=body)
        if not answer.is_success:
            return Answer(answer.status_code, "", answer.text)
        return Answer(200, *told_by(answer, answer.json()["choices"][0]["text"]))

    def _listen(self, body: dict[str, Any]) -> Answer:
        with self._client.stream("POST", "/v1/completions", json=body | {"stream": True}) as answer:
            if not answer.is_success:
                return Answer(answer.status_code, "", answer.read().decode())
            try:
                parts = [json.loads(line[6:])["choices"] for line in answer.iter_lines() if line.startswith("data: {")]
            except httpx.TransportError:
                return Answer(CUT, *told_by(answer, ""))
        return Answer(200, *told_by(answer, "".join(part[0]["text"] for part in parts if part)))


def told_by(answer: httpx.Response, text: str) -> tuple[str, str, str]:
    return answer.headers["x-adapter-version"], text, answer.headers["x-response-id"]


def versions(answers: list[Answer]) -> set[str]:
    return {answer.version for answer in answers}


def counts_by_version(answers: list[Answer]) -> dict[str, int]:
    """How often each version answered; an error counts under its words."""
    return dict(Counter(answer.version or f"{answer.status} {answer.text[:200]}" for answer in answers))
