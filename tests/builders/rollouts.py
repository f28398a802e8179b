"""Rollouts that run, and minutes of answers as routers report them."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from django.utils.timezone import now

from adapterhub.accounts.models import Membership, User
from registry.models import AdapterVersion, Alias, Rollout, RolloutMinute
from registry.serving.reconciler import RECONCILER
from tests.builders.people import member

STEPS = [{"weight": 10, "hold_s": 60, "min_samples": 100}, {"weight": 50, "hold_s": 60, "min_samples": 100}]
RAILS = [{"metric": "error_rate", "margin": 5}]
SOON, LATER = timedelta(seconds=90), timedelta(minutes=4)


def opened(alias: Alias, candidate: AdapterVersion, user: User, **plan: Any) -> Rollout:
    fields = {"steps": STEPS, "guardrails": RAILS, **plan}
    rollout = Rollout.create(alias=alias, candidate=candidate, reason="try", by=user.as_actor(), **fields)
    if alias.quorum:
        signed(rollout)
    rollout.started(by=RECONCILER)
    return rollout


def signed(rollout: Rollout, *names: str) -> Rollout:
    """Have an approver sign the rollout's pending request."""
    project, approval = rollout.alias.project, rollout.approvals.get(status="pending")
    for name in names or ("signer",):
        person = User.objects.filter(username=name).first() or member(name, project, Membership.Role.APPROVER)
        approval.approve(reason="The plan is right.", by=person.as_actor())
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
