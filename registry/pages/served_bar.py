"""The bar that shows what an alias served over time: a piece for each move, and one for each rollout above it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from registry.models import Alias, AliasMove, without_bodies
from registry.models.rollout_states import RolloutStatus

WIDTH, LEAST, COLOURS, MOST_PIECES = 1000, 3, 8, 200


@dataclass(frozen=True)
class Span:
    """The time from `first` to `last`, drawn on a bar of WIDTH units."""

    first: datetime
    last: datetime

    def x(self, at: datetime) -> float:
        """Return the x of a time; a time outside the span lies at the nearer end."""
        share = (at - self.first).total_seconds() / max((self.last - self.first).total_seconds(), 1)
        return round(WIDTH * min(1.0, max(0.0, share)), 1)

    def piece(self, start: datetime, end: datetime) -> dict[str, float]:
        """Return x and width of a piece of the bar; it is at least LEAST units wide, so that it can be seen."""
        return {"x": self.x(start), "width": max(LEAST, round(self.x(end) - self.x(start), 1))}


def served_bar(alias: Alias, at: datetime, now: datetime) -> dict[str, Any]:
    """Return what the bar of an alias' newest moves draws.

    `pieces` are the versions served one after another, `rollouts` lie above them, `chosen` is the x of `at` (None
    if it is before the first), `first` and `last` are the times of both ends.
    """
    newest = without_bodies(alias.moves.select_related("version__adapter__project"), "version")[:MOST_PIECES]
    moves = list(reversed(newest))
    span = Span(moves[0].at, max(now, moves[-1].at + timedelta(minutes=1)))
    return {
        "pieces": [piece_of(span, moves, number) for number in range(len(moves))],
        "rollouts": rollouts_of(alias, span),
        "chosen": span.x(at) if at >= span.first else None,
        "first": span.first,
        "last": span.last,
        "width": WIDTH,
    }


def piece_of(span: Span, moves: Sequence[AliasMove], number: int) -> dict[str, Any]:
    """Return the bar's piece for the move `number`: from its time to the next move's, or to now for the newest.

    `until` is the next move's time, None for the newest. Pieces of the same version have the same colour.
    """
    move, following = moves[number], moves[number + 1 : number + 2]
    until = following[0].at if following else None
    return {
        **span.piece(move.at, until or span.last),
        "move": move,
        "until": until,
        "colour": move.version.pk % COLOURS,
    }


def rollouts_of(alias: Alias, span: Span) -> list[dict[str, Any]]:
    """Return the pieces of the rollouts that were opened within the span, newest first."""
    opened = alias.rollouts.filter(opened_at__gte=span.first).exclude(status=RolloutStatus.DRAFT)
    rows = without_bodies(
        opened.select_related("stable__adapter__project", "candidate__adapter__project"), "stable", "candidate"
    )[:MOST_PIECES]
    return [
        {**span.piece(rollout.opened_at or span.first, rollout.ended_at or span.last), "rollout": rollout}
        for rollout in rows
    ]
