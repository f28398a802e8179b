"""Limit on the memory of answers that are not streamed, each of which is held until its client has read it."""

from __future__ import annotations

from collections import Counter

from starlette.responses import Response

from serving_client.router.errors import Refusal

# All whole answers that the router holds; those of one project take half of it, which is also the most for one answer.
MOST_HELD_BYTES = 256 * 2**20


class WholeAnswers:
    """The bytes of all whole answers that this router holds, limited in all and for each project."""

    def __init__(self) -> None:
        self.held_bytes = Counter[str]()

    def share(self, project: str) -> AnswerShare:
        """Return the count of one answer's bytes."""
        return AnswerShare(self, project)


class AnswerShare:
    """The bytes that one answer takes, until they are released or nothing refers to this any more.

    Whoever holds the answer's bytes must hold this, too: an answer ends in many ways.
    """

    def __init__(self, answers: WholeAnswers, project: str) -> None:
        self._answers, self._project, self.taken_bytes = answers, project, 0

    def take(self, count: int) -> None:
        """Count more bytes. Raises Refusal 502 for an answer that is too large, and 503 if too many are held."""
        counts, half = self._answers.held_bytes, MOST_HELD_BYTES // 2
        if self.taken_bytes + count > half:
            raise Refusal(502, "answer_too_large", f"The replica's answer is over {half >> 20} MB.")
        if counts.total() + count > MOST_HELD_BYTES or counts[self._project] + count > half:
            raise Refusal(503, "busy", "The router holds too many answers: try again.", retry_after_s=1)
        self.taken_bytes += count
        counts[self._project] += count

    def release(self) -> None:
        """Subtract the bytes from the counts, as nobody holds them any more; a second call changes nothing.

        Deletion does so too, but an exception's traceback may keep this object alive for long.
        """
        counts = self._answers.held_bytes
        counts[self._project] -= self.taken_bytes
        if not counts[self._project]:
            del counts[self._project]
        self.taken_bytes = 0

    def __del__(self) -> None:
        """Subtract the bytes again."""
        self.release()


class WholeAnswer(Response):
    """A response that holds the share of an answer until it is sent."""

    def __init__(self, content: bytes, status: int, headers: dict[str, str], share: AnswerShare) -> None:
        super().__init__(content, status, headers)
        self.share = share
