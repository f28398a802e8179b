"""Lines of progress in a log: each change of status, other progress now and then, and a sign of life."""

from __future__ import annotations

import io

from rich.console import Console
from rich.progress import Progress

from adapterhub.cli.waiting import Follower


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_long_job_shows_its_progress_in_a_log() -> None:
    text, clock = io.StringIO(), Clock()
    bar = Progress(console=Console(file=text, width=200), disable=True)
    follower = Follower("training dora", bar, clock)
    follower.update({"status": "queued", "progress": {}})
    follower.update({"status": "running", "progress": {}})
    for second in range(1, 151):
        clock.now = second
        step = min(second, 30)
        follower.update({"status": "running", "progress": {"step": step, "total": 40, "eta_s": 40 - step}})
    follower.update({"status": "succeeded", "progress": {"step": 40, "total": 40, "eta_s": 0}})
    assert text.getvalue().splitlines() == [
        "training dora: queued",
        "training dora: running",
        "training dora: running, step 10 of 40, about 30 s left, 10 s so far",
        "training dora: running, step 20 of 40, about 20 s left, 20 s so far",
        "training dora: running, step 30 of 40, about 10 s left, 30 s so far",
        "training dora: running, step 30 of 40, about 10 s left, 90 s so far",
        "training dora: running, step 30 of 40, about 10 s left, 150 s so far",
        "training dora: succeeded, step 40 of 40",
    ]
