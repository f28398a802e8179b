"""Progress of server jobs on stderr: a bar in a terminal, lines in a log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from adapterhub.cli.rollout_state import remedy
from adapterhub.client import Client
from adapterhub.client.calls import Call
from adapterhub.client.final_states import is_over, require_good
from adapterhub.core import durations

T = TypeVar("T")
# Seconds between two lines about the same status: after a change of the progress, and without one.
CHANGED_S, SAME_S = 10.0, 60.0


class Follower:
    """A display of the progress of one object, as a bar on a terminal, else as lines on stderr."""

    def __init__(self, name: str, bar: Progress, clock: Callable[[], float] = time.monotonic) -> None:
        self.name, self.bar, self.clock = name, bar, clock
        self.is_live = bar.console.is_terminal
        self.task: TaskID = bar.add_task(name, total=None, status="")
        self.began_at = self.printed_at = clock()
        self.status, self.text = "", ""

    def update(self, resource: dict[str, Any]) -> None:
        """Show the object's progress, and on a change of status what somebody has to do.

        Without a terminal a line is printed for each change of status, for other progress every 10 s, and every minute
        anyway.
        """
        done, total, status = state_of(resource)
        self.bar.update(self.task, completed=done, total=total, status=status)
        text = f"{status}{progress_in_words(resource)}"
        passed = self.clock() - self.printed_at
        is_due = status != self.status or passed >= (SAME_S if text == self.text else CHANGED_S)
        if not self.is_live and is_due:
            so_far = f", {self.clock() - self.began_at:.0f} s so far" if status == self.status else ""
            self.print(f"{self.name}: {text}{so_far}")
            self.printed_at, self.text = self.clock(), text
        if status != self.status and (advice := remedy(resource)):
            self.print(advice)
        self.status = status

    def print(self, line: str) -> None:
        """Print a line above the bar."""
        self.bar.console.print(line, soft_wrap=True, highlight=False, markup=False)


def state_of(resource: dict[str, Any]) -> tuple[float, float | None, str]:
    """Return the progress, its total (None if not known), and the status in words.

    The progress of a rollout is the candidate's share in percent, of 100.
    """
    status = str(resource["status"]).replace("_", " ")
    if "weight" in resource:
        signing = ", waits for signatures" if resource.get("waits_for_signature") else ""
        return resource["weight"], 100, f"{status}, {resource['weight']:g} %{signing}"
    progress = resource.get("progress") or {}
    done, total = progress.get("step") or 0, progress.get("total")
    return done, total, status


def progress_in_words(resource: dict[str, Any]) -> str:
    """Return a job's progress: `, step 40 of 200, about 60 s left`; empty before there is any."""
    progress = resource.get("progress") or {}
    if not progress.get("total"):
        return ""
    left = f", about {durations.in_words(progress['eta_s'])} left" if progress.get("eta_s") else ""
    return f", step {progress.get('step') or 0} of {progress['total']}{left}"


@contextmanager
def following(name: str) -> Iterator[Follower]:
    """Yield a display of progress, with a bar on standard error."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[status]}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        yield Follower(name, bar)


def until_over(api: Client, call: Call[T], name: str, timeout_s: float) -> T:
    """Poll the object until it has ended, well or not, or is paused, and return it; its progress is shown on stderr.

    Raises TimedOut after `timeout_s`.
    """
    with following(name) as follower:
        for answer in api.poll(call, timeout_s):
            follower.update(cast(dict[str, Any], answer))
            if is_over(answer):
                break
    return answer


def until_ended(api: Client, call: Call[T], name: str, timeout_s: float) -> T:
    """Poll the object until it has ended, and return it.

    Raises TimedOut, and Failed when it did not end well or is paused.
    """
    answer = until_over(api, call, name, timeout_s)
    require_good(answer, name)
    return answer
