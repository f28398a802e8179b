"""Shared parts of a declaration's steps: the state that they find or make, and the change that one would make."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

from adapterhub.cli.declaration import Declaration, refusal
from adapterhub.cli.exit_codes import Ended, Exit, code_of
from adapterhub.cli.waiting import until_ended
from adapterhub.client import ApiError, Client, calls
from adapterhub.client.calls import Call
from adapterhub.client.rest_types import Adapter, Alias, Evaluation, Page, PlanCheck, RankAnalysis, Rollout, TrainingRun

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
    """The state that the steps have found or made. None: missing, or unknown until an earlier step is carried out."""

    api: Client
    declared: Declaration
    project: str
    file: Path
    timeout_s: float
    adapter: Adapter | None = None
    dataset: int | None = None
    checking: int | None = None
    columns: list[str] = field(default_factory=list)
    analysis: RankAnalysis | None = None
    run: TrainingRun | None = None
    version: str | None = None
    alias: Alias | None = None
    evaluation: Evaluation | None = None
    rollout: Rollout | None = None
    scopes: list[str] = field(default_factory=list)

    def named(self, name: str) -> str:
        """Return the reference of the declared project's object, whatever other projects have."""
        return f"{self.project}.{name}"

    def find(self, call: Call[T]) -> T | None:
        """Return the object, or None when the server answers 404."""
        try:
            return self.api.send(call)
        except ApiError as error:
            if error.status != 404:
                raise
            return None

    def followed(self, call: Call[T], name: str) -> T:
        """Follow the object until it ends, and return it. Raises Failed when it did not end well, and TimedOut."""
        return until_ended(self.api, call, name, self.timeout_s)

    def newest(self, call: Call[Page[T]], fits: Callable[[T], bool]) -> T | None:
        """Return the newest row of the list that fits; None if there is none."""
        return next((row for row in self.api.rows(call) if fits(row)), None)

    def check(self) -> PlanCheck:
        """Return the server's check of the declaration and what was found of it: refusals, hyperparameters, scopes.

        Raises Ended for a declaration with fields that the server does not take.
        """
        declared = self.declared.model_dump(exclude={"project", "data"}, exclude_none=True)
        facts = {"dataset": self.checking or self.dataset, "columns": self.columns, "version": self.version}
        try:
            return self.api.send(calls.check_plan(self.project, {**declared, **facts}))
        except ApiError as error:
            if not any(fault.get("field") for fault in error.errors):
                raise
            raise refusal(self.file, error.errors, code_of(error)) from None


def known(value: T | None) -> T:
    """Return a value of an earlier step. Raises Ended when it is gone because somebody removed it in the meantime."""
    if value is None:
        raise Ended("An object that an earlier step used is gone: run the command again.", Exit.CONFLICT)
    return value


class Step(Protocol):
    """A step: `plan` reads the current state and returns the missing change; `do` carries it out."""

    def plan(self, state: State) -> Change | None:
        """Return the change that the declaration needs; None if there is nothing to do. Raises Ended."""

    def do(self, state: State) -> None:
        """Carry the change out."""
