"""Shared parts of a declaration's steps: the state that they find or make, and the change that one would make."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from adapterhub.cli.declaration import Declaration, refusal
from adapterhub.cli.exit_codes import Ended, Exit, code_of
from adapterhub.cli.waiting import until_ended
from adapterhub.client import ApiError, Client, calls
from adapterhub.client.calls import Call
from adapterhub.client.rest_types import (
    Adapter,
    Alias,
    Cluster,
    Evaluation,
    Page,
    PlanCheck,
    RankAnalysis,
    Replica,
    Rollout,
    TrainingRun,
)

T = TypeVar("T")


@dataclass(frozen=True)
class Change:
    """A change that a step would make. `action` is create, change, run, follow or open."""

    action: str
    kind: str
    name: str
    why: str


@dataclass
class State:
    """The state that the steps have found or made. None: it does not exist, or is not known before an earlier step."""

    api: Client
    declared: Declaration
    project: str
    file: Path
    timeout_s: float
    cluster: Cluster | None = None
    replicas: list[Replica] = field(default_factory=list)
    adapter: Adapter | None = None
    dataset: int | None = None
    checking: int | None = None
    columns: list[str] = field(default_factory=list)
    analysis: RankAnalysis | None = None
    run: TrainingRun | None = None
    version: str | None = None
    alias: Alias | None = None
    evaluation: Evaluation | None = None
    tasks: dict[str, Evaluation] = field(default_factory=dict)
    rollout: Rollout | None = None
    scopes: list[str] = field(default_factory=list)

    def named(self, name: str) -> str:
        """Return the full reference `project.name`, which is unique even if other projects have the name."""
        return f"{self.project}.{name}"

    def find(self, call: Call[T]) -> T | None:
        """Return the object that the call reads; None when the server answers 404."""
        try:
            return self.api.send(call)
        except ApiError as error:
            if error.status != 404:
                raise
            return None

    def followed(self, call: Call[T], name: str) -> T:
        """Repeat the call until the object that it reads has ended, and return that; messages call it `name`.

        Raises Failed if it did not end well or is paused, and TimedOut after `timeout_s` seconds of this
        state.
        """
        return until_ended(self.api, call, name, self.timeout_s)

    def newest(self, call: Call[Page[T]], fits: Callable[[T], bool]) -> T | None:
        """Return the first row, the newest, of the list for which `fits` is true; None if there is none."""
        return next((row for row in self.api.rows(call) if fits(row)), None)

    def check(self) -> PlanCheck:
        """Return the server's check of the declaration: refusals, full hyperparameters, and the token's scopes.

        Raises Ended for a declaration with fields that the server does not accept.
        """
        declared = self.declared.model_dump(
            exclude={"project": True, "data": True, "cluster": {"replicas", "reason"}, "limits": {"reason"}},
            exclude_none=True,
        )
        facts = {"dataset": self.checking or self.dataset, "columns": self.columns, "version": self.version}
        try:
            return self.api.send(calls.check_plan(self.project, {**declared, **facts}))
        except ApiError as error:
            if not any(fault.get("field") for fault in error.errors):
                raise
            raise refusal(self.file, error.errors, code_of(error)) from None


def summary(state: State) -> dict[str, Any]:
    """Return for --json the ids of what exists of the declaration, `serving`, and the rollout; null for what does not.

    `serving` is the version that the alias serves.
    """
    return {
        "adapter": state.declared.adapter.slug,
        "dataset": state.dataset,
        "version": state.version,
        "rank_analysis": state.analysis and state.analysis["id"],
        "training_run": state.run and state.run["id"],
        "evaluation": state.evaluation and state.evaluation["id"],
        "tasks": {task: row["id"] for task, row in state.tasks.items()},
        "serving": state.alias and state.alias["version"],
        "rollout": state.rollout,
    }


def known(value: T | None) -> T:
    """Return the value, which an earlier step found or made. Raises Ended if it is None, as the object is gone."""
    if value is None:
        raise Ended("An object that an earlier step used is gone: run the command again.", Exit.CONFLICT)
    return value


class Step(Protocol):
    """The interface of a step: `plan` returns the missing change, `do` carries it out."""

    def plan(self, state: State) -> Change | None:
        """Store what the server has of this step in the state; return the change that is needed, None if there is none.

        Raises Ended for what cannot be reached, such as a version that a gate refused.
        """

    def do(self, state: State) -> None:
        """Carry out the change and store the result in the state."""
