"""The people responsible for what an alias served at a time: requester, approvers, verdicts, move and rollout."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from django.db.models import Q

from adapterhub.audit.models import AuditEvent
from adapterhub.audit.tags import Tag
from registry.models import AdapterVersion, Alias, AliasMove, Approval, Rollout, RolloutDecision

MOVED = {
    Tag.ALIAS_CREATED: "The alias was created with it",
    Tag.ALIAS_MOVED: "Moved at once",
    Tag.ROLLOUT_PROMOTED: "Promoted by a rollout",
    Tag.ROLLOUT_ROLLED_BACK: "A rollout was rolled back",
}
ASKED = (Tag.ROLLOUT_DRAFTED, Tag.ROLLOUT_CREATED)
SERVING = ("running", "awaiting_approval")


@dataclass(frozen=True)
class Trial:
    """A rollout that gave some of the users its candidate at that time; `percent` is their share."""

    rollout: Rollout
    percent: float


@dataclass(frozen=True)
class Responsibility:
    """The version that an alias served from `since` until `until` (None: it still does), and who brought that about.

    `asked_by` requested it, `decided_by` carried it out; without a rollout both are the same. `how` is a sentence,
    `event` the audit event of the move (None if there is none), `trial` a rollout that was running at that time. If a
    rollout moved the alias, it is `rollout`, `decision` the decision to do so (None if there is none), and `approvals`
    are the approvals that it had.
    """

    version: AdapterVersion
    since: datetime
    until: datetime | None
    how: str
    asked_by: str
    decided_by: str
    reason: str
    event: AuditEvent | None = None
    rollout: Rollout | None = None
    decision: RolloutDecision | None = None
    approvals: list[Approval] = field(default_factory=list)
    trial: Trial | None = None


def responsibility(alias: Alias, at: datetime) -> Responsibility | None:
    """Return who is responsible for what the alias served at the time `at`; None if the alias did not exist yet."""
    move = alias.moves.filter(at__lte=at).select_related("version__adapter__project").first()
    if move is None:
        return None
    until = alias.moves.filter(at__gt=move.at).order_by("at").values_list("at", flat=True).first()
    event = event_of(alias, move, until)
    answer: dict[str, Any] = {
        "version": move.version,
        "since": move.at,
        "until": until,
        "how": MOVED[Tag(event.tag)] if event else "Moved",
        "asked_by": move.actor_name,
        "decided_by": move.actor_name,
        "reason": move.reason,
        "event": event,
        "trial": trial_at(alias, at),
    }
    if event and event.object_type == Rollout._meta.model_name:
        answer |= of_rollout(event)
    return Responsibility(**answer)


def event_of(alias: Alias, move: AliasMove, until: datetime | None) -> AuditEvent | None:
    """Return the audit event that recorded a move of the alias; None if there is no such event.

    It is the first by the move's actor, on the alias or one of its rollouts, since the move and before `until`, the
    time of the next move (None for the last).
    """
    rollouts = [str(key) for key in alias.rollouts.values_list("pk", flat=True)]
    about = Q(object_type=Alias._meta.model_name, object_id=str(alias.pk), tag__in=(Tag.ALIAS_CREATED, Tag.ALIAS_MOVED))
    ended = (Tag.ROLLOUT_PROMOTED, Tag.ROLLOUT_ROLLED_BACK)
    about |= Q(object_type=Rollout._meta.model_name, object_id__in=rollouts, tag__in=ended)
    events = AuditEvent.objects.filter(about, at__gte=move.at, actor_name=move.actor_name)
    return (events.filter(at__lt=until) if until else events).order_by("id").first()


def of_rollout(event: AuditEvent) -> dict[str, Any]:
    """Return the fields of Responsibility that come from the rollout which the event promoted or rolled back."""
    related = ("alias__project", "stable__adapter__project", "candidate__adapter__project")
    rollout = Rollout.objects.select_related(*related).get(pk=event.object_id)
    request = AuditEvent.objects.about(rollout).filter(tag__in=ASKED).order_by("id").first()
    outcome = event.tag.partition(":")[2]
    return {
        "rollout": rollout,
        "asked_by": request.actor_name if request else "",
        "decision": rollout.decisions.filter(outcome=outcome, at__lte=event.at).last(),
        "approvals": list(rollout.approvals.prefetch_related("signatures").order_by("created_at")),
    }


def trial_at(alias: Alias, at: datetime) -> Trial | None:
    """Return the alias' rollout that gave some users its candidate at that time; None if none did.

    Only the rollout that was opened last before that time is considered. Weight and status are those of its newest
    audit event by then; a paused rollout gives no users its candidate.
    """
    related = ("alias__project", "candidate__adapter__project")
    opened = alias.rollouts.filter(opened_at__lte=at).select_related(*related)
    if (rollout := opened.order_by("-opened_at").first()) is None:
        return None
    events = AuditEvent.objects.about(rollout).filter(at__lte=at).defer("canonical").in_parts()
    state = next((event.after for event in events if event.after and "weight" in event.after), None)
    return Trial(rollout, float(state["weight"])) if state and state["status"] in SERVING else None
