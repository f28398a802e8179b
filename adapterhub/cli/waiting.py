"""Progress of server jobs on stderr: a bar in a terminal, a line per change of status in a log."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from adapterhub.cli.exit_codes import Ended
from adapterhub.client import Client
from adapterhub.client.calls import Call

T = TypeVar("T")
ENDED = {"succeeded", "failed", "cancelled", "ready", "rejected", "promoted", "rolled_back"}
GOOD = {"succeeded", "ready", "promoted"}


class Follower:
    """A display of the status of one job."""

    def __init__(self, name: str, bar: Progress) -> None:
        self.name, self.bar = name, bar
        self.is_live = bar.console.is_terminal
        self.task: TaskID = bar.add_task(name, total=None, status="")
        self.last = ""

    def update(self, resource: dict[str, Any]) -> None:
        """Show the object's progress; off a terminal print each change of status."""
        done, total, status = state_of(resource)
        self.bar.update(self.task, completed=done, total=total, status=status)
        if not self.is_live and status != self.last:
            self.bar.console.print(f"{self.name}: {status}", soft_wrap=True, highlight=False, markup=False)
        self.last = status


def state_of(resource: dict[str, Any]) -> tuple[float, float | None, str]:
    """Return the progress, its total (None: not known), and the status in words."""
    status = str(resource["status"]).replace("_", " ")
    if "weight" in resource:
        return resource["weight"], 100, f"{status}, {resource['weight']:g} %"
    progress = resource.get("progress") or {}
    done, total = progress.get("step") or 0, progress.get("total")
    return done, total, status


@contextmanager
def following(name: str) -> Iterator[Follower]:
    """Provide a progress bar on standard error."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[status]}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        yield Follower(name, bar)


def until_ended(api: Client, call: Call[T], name: str, timeout_s: float) -> T:
    """Follow the object until it has ended. Raises TimedOut, and Ended when it failed or was rolled back."""
    with following(name) as follower:
        for answer in api.poll(call, timeout_s):
            resource = cast(dict[str, Any], answer)
            follower.update(resource)
            if resource["status"] in ENDED:
                break
    return cast(T, well_ended(resource, name))


def well_ended(resource: dict[str, Any], name: str) -> dict[str, Any]:
    """Return the object. Raises Ended unless it ended well."""
    if resource["status"] not in GOOD:
        explanation = resource.get("message") or resource.get("reason") or "no reason given"
        raise Ended(f"{name} {str(resource['status']).replace('_', ' ')}: {explanation}")
    return resource
