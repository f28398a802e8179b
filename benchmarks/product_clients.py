"""Servers and clients of `whole_product.py`: vLLM in processes of its own, and clients that never rest."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import quantiles
from typing import Any

import aiohttp

START_S = 400.0
ENGINE_SETTINGS = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
    "VLLM_USE_FLASHINFER_SAMPLER": "0",
}


@dataclass
class VllmServer:
    """A vLLM server in a process group of its own, so that a kill takes all of its processes."""

    name: str
    port: int
    command: list[str]
    settings: dict[str, str]
    log: Path
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        self.started_at = time.monotonic()
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(  # noqa: S603 - our own arguments
                [*self.command, "--port", str(self.port)],
                env={name: text for name, text in os.environ.items() if name != "PYTHONPATH"} | self.settings,
                cwd=self.log.parent,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def kill(self) -> None:
        if self.process and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    async def ready(self, session: aiohttp.ClientSession) -> float:
        """Seconds from the start to the first answer. Raises RuntimeError if it ends or takes longer than START_S."""
        while time.monotonic() < self.started_at + START_S:
            if self.process and self.process.poll() is not None:
                break
            try:
                async with session.get(f"{self.url}/health") as answer:
                    if answer.status == 200:
                        return time.monotonic() - self.started_at
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.25)
        raise RuntimeError(f"{self.name} does not come up: {self.log.read_text()[-3000:]}")


@dataclass(frozen=True)
class Answer:
    """One request of a client, as the client saw it; `first` is the time of the first token of a stream."""

    began: float
    ended: float
    status: int
    user: str = ""
    alias: str = ""
    prompt: int = 0
    version: str = ""
    arm: str = ""
    named: str = ""
    text: str = ""
    tokens: int = 0
    first: float = 0.0


@dataclass
class Crowd:
    """Clients that ask again as soon as they are answered; every answer is kept."""

    session: aiohttp.ClientSession
    url: str
    token: str
    answers: list[Answer] = field(default_factory=list)

    async def ask(
        self,
        model: str,
        prompt: str = "",
        tokens: int = 1,
        *,
        messages: Sequence[dict[str, str]] = (),
        number: int = 0,
        user: str = "",
        stream: bool = False,
    ) -> Answer:
        """Send one completion, or chat, without sampling, which ends after exactly `tokens` tokens."""
        path = "chat/completions" if messages else "completions"
        body: dict[str, Any] = {"messages": messages} if messages else {"prompt": prompt}
        body |= {"model": model, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
        body |= {"user": user} if user else {}
        body |= {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        began = time.monotonic()
        try:
            async with self.session.post(f"{self.url}/v1/{path}", json=body, headers=headers) as response:
                first, content = 0.0, b""
                async for chunk in response.content.iter_any():
                    first, content = first or time.monotonic(), content + chunk
        except (aiohttp.ClientError, TimeoutError) as error:
            return self.remembered(Answer(began, time.monotonic(), 0, user, model, number, text=repr(error)))
        ended = time.monotonic()
        if response.status != 200:
            text = content.decode(errors="replace")[:300]
            return self.remembered(Answer(began, ended, response.status, user, model, number, text=text))
        parts = events(content) if stream else [json.loads(content)]
        text = "".join(choice.get("text") or "" for part in parts for choice in part.get("choices", ()))
        counted = next((part["usage"]["completion_tokens"] for part in reversed(parts) if part.get("usage")), 0)
        return self.remembered(
            Answer(
                began,
                ended,
                200,
                user,
                model,
                number,
                response.headers.get("X-Adapter-Version", ""),
                response.headers.get("X-Rollout-Arm", ""),
                parts[0]["model"],
                text,
                counted,
                first,
            )
        )

    def remembered(self, answer: Answer) -> Answer:
        self.answers.append(answer)
        return answer

    @asynccontextmanager
    async def asking(self, clients: int, model: str, prompts: Sequence[str], tokens: int) -> AsyncIterator[None]:
        """While the block runs, each client asks the prompts in turn, as a user of its own."""
        is_over = asyncio.Event()

        async def client(number: int) -> None:
            turn = number
            while not is_over.is_set():
                place = turn % len(prompts)
                await self.ask(model, prompts[place], tokens, number=place, user=f"user-{number}")
                turn += clients + 1

        tasks = [asyncio.create_task(client(number)) for number in range(clients)]
        try:
            yield
        finally:
            is_over.set()
            await asyncio.gather(*tasks)

    async def all_of(self, requests: Sequence[dict[str, Any]], clients: int) -> list[Answer]:
        """Send the requests by so many clients, each taking the next one."""
        waiting, answers = iter(requests), []

        async def client() -> None:
            for request in waiting:
                answers.append(await self.ask(**request))

        await asyncio.gather(*(client() for _ in range(clients)))
        return answers


def events(content: bytes) -> list[dict[str, Any]]:
    """The JSON objects of a stream of server-sent events."""
    lines = content.decode().splitlines()
    return [json.loads(line[6:]) for line in lines if line.startswith("data: {")]


async def until(probe: Callable[[], Any], event: str, timeout_s: float = 120.0, every_s: float = 0.05) -> float:
    """Seconds until the coroutine function `probe` returns something true. Raises RuntimeError after the timeout."""
    began = time.monotonic()
    while time.monotonic() < began + timeout_s:
        if await probe():
            return time.monotonic() - began
        await asyncio.sleep(every_s)
    raise RuntimeError(f"{event} did not happen within {timeout_s:.0f} s.")


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """p50 and p95 in milliseconds of seconds."""
    cuts = quantiles(values, n=100, method="inclusive")
    return {"p50_ms": 1000 * cuts[49], "p95_ms": 1000 * cuts[94]}


def speed(answers: Sequence[Answer]) -> float:
    """Tokens a second, from the first request to the last answer."""
    seconds = max(each.ended for each in answers) - min(each.began for each in answers)
    return sum(each.tokens for each in answers) / seconds
