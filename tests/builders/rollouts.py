"""Rollouts that run, and minutes of answers as routers report them."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from django.utils.timezone import now

from adapterhub.accounts.models import User
from registry.models import AdapterVersion, Alias, Rollout, RolloutMinute
from registry.serving.reconciler import RECONCILER

STEPS = [{"weight": 10, "hold_s": 60, "min_samples": 100}, {"weight": 50, "hold_s": 60, "min_samples": 100}]
RAILS = [{"metric": "error_rate", "margin": 5}]
SOON, LATER = timedelta(seconds=90), timedelta(minutes=4)


def opened(alias: Alias, candidate: AdapterVersion, user: User, **plan: Any) -> Rollout:
    fields = {"steps": STEPS, "guardrails": RAILS, **plan}
    rollout = Rollout.create(alias=alias, candidate=candidate, reason="try", by=user.as_actor(), **fields)
    rollout.started(by=RECONCILER)
    return rollout


def measured(
    rollout: Rollout,
    *,
    control: float,
    candidate: float,
    count: int = 2000,
    at: datetime | None = None,
    metric: str = "error_rate",
) -> None:
    """So many answers of each arm in one minute, with these rates of failure."""
    at = at or now()
    for arm, rate in (("control", control), ("candidate", candidate)):
        values = [1.0] * round(rate * count) + [0.0] * (count - round(rate * count))
        RolloutMinute.add((rollout, arm, at, metric, value) for value in values)
