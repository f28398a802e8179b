"""People who ask again and again, from several threads, and everything they were answered."""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx

from tests.waiting import wait_until

THREADS = 4
# Between two questions of one of them: a server that starts meanwhile needs a core, too.
BREATH_S = 0.1
UNTIL_S = 120
PROMPT = "The bank shall report"
COUNT = 12


@dataclass(frozen=True)
class Answer:
    status: int
    version: str
    text: str


class Crowd:
    """Greedy questions to one alias; every answer is kept."""

    def __init__(self, router: str, token: str) -> None:
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

    def until(self, seen: Callable[[list[Answer]], bool], what: str) -> None:
        """Wait until answers from now on satisfy `seen`."""
        start = len(self.answers)
        try:
            wait_until(lambda: seen(self.answers[start:]), UNTIL_S, what)
        except AssertionError as error:
            raise AssertionError(f"{error}; answered: {told(self.answers[start:])}") from None

    def _go_on(self) -> None:
        while not self._stopped.wait(BREATH_S):
            self.answers.append(self._ask(f"user-{next(self._numbers)}"))

    def _ask(self, user: str) -> Answer:
        body = {"model": "compliance", "prompt": PROMPT, "max_tokens": COUNT, "temperature": 0, "user": user}
        answer = self._client.post("/v1/completions", json=body)
        if not answer.is_success:
            return Answer(answer.status_code, "", answer.text)
        return Answer(answer.status_code, answer.headers["x-adapter-version"], answer.json()["choices"][0]["text"])


def versions(answers: list[Answer]) -> set[str]:
    return {answer.version for answer in answers}


def told(answers: list[Answer]) -> dict[str, int]:
    """How often each version answered; an error counts under its words."""
    return dict(Counter(answer.version or f"{answer.status} {answer.text[:200]}" for answer in answers))
