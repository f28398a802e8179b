"""Work after the reader has the answer: its text is checked or sampled, and the candidate may be asked the same."""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from collections.abc import Coroutine
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from serving_client.protocol import Checks, RolloutRoute, VersionRoute
from serving_client.reports import MeasuredAnswer, Outcome, Sample
from serving_client.router.errors import Refusal
from serving_client.router.reporting.judge_samples import Samples, question_of
from serving_client.router.reporting.outcomes import OutcomeReporter
from serving_client.router.reporting.response_checks import judged, text_of
from serving_client.router.reporting.usage import Usage, estimated, usage_in
from serving_client.router.request_fields import EMBEDDINGS, Body
from serving_client.router.resolve import Target, rewritten
from serving_client.router.table_follower import TableWatcher
from serving_client.router.upstream.replicas import Upstream

MOST_BYTES = 2**16  # bytes of an answer; a longer one is not judged
MOST_MIRRORED_BYTES = 4 * 2**20
MOST_AT_ONCE = 32  # tasks; answers beyond that are not judged, as a sample suffices
MEASURED = ("candidate", "control")


class CapturedResponse:
    """An answer of a rollout with its question, captured for mirroring to the candidate, sampling or checks."""

    def __init__(self, rollout: RolloutRoute, path: str, question: Body, is_mirrored: bool, is_sampled: bool) -> None:
        self.rollout, self.path, self.question = rollout, path, question
        self.is_mirrored, self.is_sampled = is_mirrored, is_sampled
        self._parts: list[bytes] = []
        self._room = MOST_BYTES

    def saw(self, chunk: bytes) -> None:
        """Add a chunk of the answer; once the chunks exceed MOST_BYTES in all, no more are kept."""
        self._room -= len(chunk)
        if self._room >= 0:
            self._parts.append(chunk)

    def answer(self) -> bytes | None:
        """Return the captured bytes; None if they exceeded the limit."""
        return b"".join(self._parts) if self._room >= 0 else None


def captured_for(rollout: RolloutRoute | None, target: Target, path: str, body: Body) -> CapturedResponse | None:
    """Return a recorder if the answer is to be mirrored, sampled or checked, else None.

    Answers of the arm `stable` may be mirrored, those of `candidate` and `control` sampled or checked; the shares are
    drawn at random. Embeddings, and answers that are not sticky or not counted, are never captured.
    """
    if rollout is None or not target.is_counted or not target.is_sticky or path == EMBEDDINGS:
        return None
    is_measured = target.arm in MEASURED
    is_mirrored = target.arm == "stable" and chosen_by_chance(rollout.shadow)
    is_sampled = is_measured and rollout.sampling is not None and chosen_by_chance(rollout.sampling.percent)
    listens = is_mirrored or is_sampled or (is_measured and rollout.checks != Checks())
    return CapturedResponse(rollout, path, body, is_mirrored, is_sampled) if listens else None


def chosen_by_chance(percent: float) -> bool:
    """Return True at random, with a probability of `percent` percent."""
    return random.random() * 100 < percent  # noqa: S311 - no secret


def stable_answer(outcome: Outcome, hints: dict[str, Any]) -> MeasuredAnswer:
    """Return the measurements of the stable version's answer, with the results of its text checks, `hints`."""
    return MeasuredAnswer(
        status=outcome.status,
        ttft_ms=outcome.ttft_ms,
        total_ms=outcome.total_ms,
        prompt_tokens=outcome.prompt_tokens,
        completion_tokens=outcome.completion_tokens,
        tokens_estimated=outcome.tokens_estimated,
        **hints,
    )


@dataclass
class Afterwards:
    """Background work on answers: reports, checks of their text, samples, and the same request to the candidate.

    `follow` never waits; `drain` waits for the tasks, which end by themselves.
    """

    watcher: TableWatcher
    upstream: Upstream
    reporter: OutcomeReporter
    samples: Samples

    def __post_init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def follow(self, target: Target, captured: CapturedResponse | None, outcome: Outcome) -> None:
        """Report the answer, and start the task that it was captured for; never wait.

        An answer to be checked or sampled is reported with the results of its checks; one to be mirrored has its
        request sent to the candidate, which is reported too. With MOST_AT_ONCE tasks running, and for failed or too
        long answers, it is only reported.
        """
        content = captured.answer() if captured and outcome.status == 200 else None
        if captured is None or content is None or len(self._tasks) >= MOST_AT_ONCE:
            self.reporter.report(outcome)
        elif not captured.is_mirrored:
            self._start(self._judge(target, captured, outcome, content))
        else:
            self.reporter.report(outcome)
            self._start(self._mirror(target, captured, outcome, content))

    async def drain(self) -> None:
        """Wait for the tasks that are running."""
        await asyncio.gather(*self._tasks)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _judge(self, target: Target, captured: CapturedResponse, outcome: Outcome, content: bytes) -> None:
        text = await asyncio.to_thread(text_of, content)
        hints = await asyncio.to_thread(judged, captured.rollout.checks, text)
        self.reporter.report(replace(outcome, **hints))
        if captured.is_sampled and captured.rollout.sampling and target.unit_hash:
            sample = Sample(
                outcome.response_id,
                captured.rollout.id,
                outcome.arm,
                target.unit_hash,
                outcome.at,
                question_of(captured.question),
                text,
            )
            await self.samples.offer(sample, captured.rollout.sampling.key)

    async def _mirror(self, target: Target, captured: CapturedResponse, outcome: Outcome, content: bytes) -> None:
        """Ask the candidate too, and report both answers as a pair; no caller sees the candidate's."""
        table = self.watcher.table
        route = table.versions.get(captured.rollout.candidate) if table else None
        if route is None or not route.replicas:
            return
        began = time.perf_counter()
        status, answer = await self._asked(replace(target, version=captured.rollout.candidate), captured, route)
        total_ms = (time.perf_counter() - began) * 1000
        checks, pair = captured.rollout.checks, (text_of(answer), text_of(content))
        usage = (usage_in(answer) or estimated(captured.question, pair[0])) if status == 200 else Usage()
        hints, stable = await asyncio.to_thread(lambda: [judged(checks, text) for text in pair])
        shadow = replace(
            outcome,
            response_id=uuid.uuid4().hex,
            version=captured.rollout.candidate,
            arm="shadow",
            status=status,
            ttft_ms=None,
            total_ms=total_ms,
            mirrored=stable_answer(outcome, stable),
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            tokens_estimated=usage.is_estimated,
        )
        hints_of_pair = {**hints, "differs": pair[0] != pair[1]} if status == 200 else {}
        self.reporter.report(replace(shadow, **hints_of_pair))

    async def _asked(self, target: Target, captured: CapturedResponse, route: VersionRoute) -> tuple[int, bytes]:
        """Send the question to the candidate; return the status and bytes of its whole answer."""
        question = {name: value for name, value in captured.question.items() if name != "stream_options"}
        payload = rewritten({**question, "stream": False}, target)
        try:
            headers = {"Content-Type": "application/json"}
            post = partial(self.upstream.post, project=target.project, is_stream=False)
            async with post(route, captured.path, payload, headers) as reply:
                # The caller's answer was short; what is so much longer is no answer.
                is_answer = len(reply.begun) <= MOST_MIRRORED_BYTES
                return (reply.response.status, reply.begun) if is_answer else (502, b"")
        except Refusal as refusal:
            return refusal.status, b""
