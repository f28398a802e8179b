"""Shares of a protected alias' traffic: what a plan gives to the candidate, and what signatures permit."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from registry.models.approval import Approval, ApprovalKind, ApprovalStatus

# A broken glass allows the change as signatures do, until somebody reviews it.
EARNED = (ApprovalStatus.APPROVED, ApprovalStatus.USED, ApprovalStatus.GLASS_BROKEN, ApprovalStatus.REVIEWED)


def share_of(weight: float, shadow: float, targeting: dict[str, Any]) -> float:
    """Return the percent of the traffic that reaches the candidate: the larger of `weight` and `shadow`.

    `weight` is the percent that it serves, `shadow` the percent that is mirrored to it. The share is 100 if users are
    pinned to the candidate: they may be anybody, however few they are.
    """
    is_pinned = "candidate" in targeting.get("pinned", {}).values()
    return 100.0 if is_pinned else max(weight, shadow)


def planned_share(plan: dict[str, Any]) -> float:
    """Return the largest share, in percent, that a plan gives to the candidate in any step.

    `plan` is a rollout's `signed_plan`.
    """
    return max(share_of(step["weight"], step.get("shadow", 0), plan["targeting"]) for step in plan["steps"])


def canary_share(alias: Any, candidate: Any) -> float:
    """Return the share, in percent, that the alias' signed policy permits a candidate before its own signature.

    It is 0 if the policy has no canary share, and for a candidate that an approver rejected for this alias and nobody
    has approved since.
    """
    canary = float(alias.policy.get("canary", 0))
    if not canary:
        return 0.0
    decisions = Approval.objects.filter(alias=alias, candidate=candidate, kind=ApprovalKind.PROMOTION)
    last = decisions.filter(status__in=(*EARNED, ApprovalStatus.REJECTED)).order_by("-decided_at").first()
    return 0.0 if last and last.status == ApprovalStatus.REJECTED else canary


def signed_share(approvals: Iterable[Approval], plan: dict[str, Any]) -> float | None:
    """Return the largest share, in percent, of a plan that was approved; None if no approval allows this plan.

    An approval allows a plan if it is for exactly this one and was signed, or allowed by break-glass. `plan` is a
    rollout's `signed_plan`.
    """
    is_signed = any(each.status in EARNED and each.evidence.get("plan") == plan for each in approvals)
    return planned_share(plan) if is_signed else None
