"""Rollouts: they move an alias from its stable version to a candidate by weight, and roll it back in one step."""

from __future__ import annotations

import secrets
import uuid
from datetime import datetime
from typing import Any

from django.db import IntegrityError, models, transaction
from django.db.models import Q
from django.utils.timezone import now

from adapterhub.accounts.models import User
from adapterhub.api.etags import require_tag
from adapterhub.audit.models import AuditEvent
from adapterhub.audit.tags import Tag
from adapterhub.core.actor import Actor
from adapterhub.core.domain_signals import send_on_commit
from adapterhub.core.errors import Conflict, Invalid, InvalidTransition
from registry.domain_signals import routes_changed
from registry.models.adapter import AdapterVersion
from registry.models.alias import Alias, require_of_project, served
from registry.models.decision import TAGS, RolloutDecision
from registry.models.evaluation import require_no_objection, require_scores
from registry.models.judgement import judgement
from registry.models.rollout_states import ACTIVE, MOVES, SERVING, RolloutStatus, in_words
from registry.models.signed_plan import SignedPlan
from registry.models.slot_admission import require_slots

Evidence = dict[str, Any] | None  # the numbers that decided, for the audit trail


class RolloutQuerySet(models.QuerySet["Rollout"]):
    """Rollouts, selected by their state and by the alias that they move."""

    def active(self) -> RolloutQuerySet:
        """Return the rollouts that are loading, running, paused or awaiting approval."""
        return self.filter(status__in=ACTIVE)

    def serving(self) -> RolloutQuerySet:
        """Return the rollouts whose candidate gets its share of traffic now."""
        return self.filter(status__in=SERVING)

    def by_alias(self, names: set[str | None]) -> dict[tuple[int, str], list[Rollout]]:
        """Group the rollouts of aliases with these names by (project's primary key, alias name), the newest first.

        An alias without a rollout has no entry; None among the names stands for no alias.
        """
        groups: dict[tuple[int, str], list[Rollout]] = {}
        for rollout in self.filter(alias__name__in=names).select_related("alias"):
            groups.setdefault((rollout.alias.project_id, rollout.alias.name), []).append(rollout)
        return groups


def new_salt() -> str:
    """Return a random salt for assigning users to arms."""
    return secrets.token_hex(8)


class Rollout(SignedPlan):
    """One A/B split of one alias's traffic; each change is recorded in the audit trail, in the same transaction.

    The salt never changes, so that a user keeps their arm across pause and resume.
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    step_at = models.DateTimeField(null=True, editable=False, help_text="When its present step began to serve.")
    salt = models.CharField(max_length=40, default=new_salt, editable=False)
    generation = models.PositiveIntegerField(default=1, editable=False)
    reason = models.TextField()
    status_reason = models.TextField(
        blank=True, default="", db_default="", editable=False, help_text="Why it is in this status."
    )
    created_by = models.ForeignKey(User, models.PROTECT, null=True, related_name="+")
    created_at = models.DateTimeField(default=now, editable=False)
    opened_at = models.DateTimeField(null=True, editable=False, help_text="Since when it moves its alias.")
    ended_at = models.DateTimeField(null=True, editable=False)

    objects = RolloutQuerySet.as_manager()

    class Meta:
        ordering = ["-created_at"]
        constraints = [
            models.UniqueConstraint(
                fields=["alias"], condition=Q(status__in=ACTIVE), name="one_active_rollout_per_alias"
            ),
            models.CheckConstraint(condition=Q(weight__gte=0, weight__lte=100), name="weight_is_percent"),
            models.CheckConstraint(condition=~Q(stable=models.F("candidate")), name="candidate_is_another_version"),
        ]

    def __str__(self) -> str:
        return f"{self.alias}: {self.stable} to {self.candidate}"

    @property
    def etag(self) -> str:
        """The ETag of the rollout's state: its generation, which every change increments."""
        return str(self.generation)

    def was_open(self, at: datetime) -> bool:
        """Return True if the rollout had been opened by that time and had not ended before it."""
        return self.opened_at is not None and self.opened_at <= at and (self.ended_at is None or at <= self.ended_at)

    @classmethod
    def create(
        cls,
        *,
        alias: Alias,
        candidate: AdapterVersion,
        steps: list[dict[str, Any]],
        reason: str,
        by: Actor,
        guardrails: list[dict[str, Any]] | None = None,
        checks: dict[str, Any] | None = None,
        targeting: dict[str, Any] | None = None,
        draft: bool = False,
    ) -> Rollout:
        """Open a rollout of the candidate on the alias, or with `draft` only store it as a draft; record and return it.

        Traffic moves only after the replicas have loaded the candidate. `steps`, `guardrails`, `checks` and `targeting`
        are those of `plan`. Raises Invalid for a plan or candidate that cannot be carried out, and as `open` does.
        """
        require_of_project(candidate, alias.project)
        rollout = cls(
            alias=alias,
            stable=alias.version,
            candidate=candidate,
            reason=reason,
            created_by=by.user,
            status=RolloutStatus.DRAFT,
        )
        rollout.plan(steps=steps, guardrails=guardrails or [], checks=checks or {}, targeting=targeting or {})
        with transaction.atomic():
            rollout.alias = Alias.objects.select_for_update().get(pk=alias.pk)
            if draft:
                rollout.require_servable()
                rollout.save()
                rollout.audit(Tag.ROLLOUT_DRAFTED, by=by, reason=reason)
            else:
                rollout.open(by=by, reason=reason)
        return rollout

    def open(self, *, by: Actor, reason: str) -> None:
        """Save the new or drafted rollout as loading its candidate, and record that.

        On commit the control loop is queued, which loads it. The caller must have locked the alias, whose present
        version becomes the stable one. For a protected alias approval is requested, too. Raises Invalid for a candidate
        that cannot be served or does not fit into the adapter slots, Conflict if the alias has an active rollout, and
        as `request_approval` does.
        """
        self.require_servable()
        require_slots(self.alias, self.candidate, Rollout.objects.active())
        self.stable, self.status, self.opened_at = self.alias.version, RolloutStatus.LOADING, now()
        try:
            with transaction.atomic():
                self.save()
        except IntegrityError:
            raise Conflict(f"{self.alias} has a rollout that has not ended.", code="rollout_active") from None
        # Texts are sent to the judge, so the audit trail records who decided that.
        evidence = {"judge": self.checks["judge"]} if "judge" in self.checks else None
        self.audit(Tag.ROLLOUT_CREATED, by=by, reason=reason, before=served(self.stable), evidence=evidence)
        if self.alias.quorum:
            self.request_approval(reason=reason, by=by)
        send_on_commit(routes_changed, alias=self.alias_id)

    def start(self, *, reason: str, by: Actor, expected_generation: int | None = None) -> None:
        """Open a draft with its plan as it is, from the version that its alias serves now.

        Raises as `open` does, InvalidTransition if it is not a draft, and Conflict if the generation is not the
        expected one.
        """
        with transaction.atomic():
            rollout = self.locked(RolloutStatus.LOADING, expected_generation)
            rollout.generation += 1
            rollout.open(by=by, reason=reason)
        self.refresh_from_db()

    def edit(self, *, reason: str, by: Actor, expected_generation: int | None = None, **changes: Any) -> None:
        """Replace parts of a draft's plan (steps, guardrails, checks, targeting) and record that; other parts stay.

        Raises Invalid as `plan` does, InvalidTransition if it is not a draft, and Conflict if the generation is not the
        expected one.
        """
        with transaction.atomic():
            rollout = self.locked(RolloutStatus.DRAFT, expected_generation)
            before = {name: getattr(rollout, name) for name in ("steps", "guardrails", "checks")}
            rollout.plan(**{**before, "targeting": None, **changes})
            rollout.generation += 1
            rollout.save()
            after = {name: getattr(rollout, name) for name in before}
            rollout.audit(Tag.ROLLOUT_EDITED, by=by, reason=reason, before=before, evidence=after)
        self.refresh_from_db()

    def discard(self, *, reason: str, by: Actor, expected_generation: int | None = None) -> None:
        """End a draft and record that.

        Raises InvalidTransition if it is not a draft, and Conflict if the generation is not the expected one.
        """
        with transaction.atomic():
            rollout = self.locked(RolloutStatus.DISCARDED, expected_generation)
            rollout.enter(RolloutStatus.DISCARDED, reason)
            rollout.audit(Tag.ROLLOUT_DISCARDED, by=by, reason=reason)
        self.refresh_from_db()

    def started(self, *, by: Actor) -> None:
        """Set a loading rollout to running, so that the candidate gets the share of its first step, and record that.

        The caller must have seen that the replicas hold the candidate. Raises InvalidTransition if the rollout is not
        loading, and NotAllowed if the alias is protected and the signatures do not permit the share.
        """
        with transaction.atomic():
            rollout = self.locked(None)
            if rollout.status != RolloutStatus.LOADING:
                raise InvalidTransition(f"{rollout} is {in_words(rollout.status)}: it has already started.")
            rollout.enter(RolloutStatus.RUNNING, "Every replica holds the candidate.")
            rollout.audit(Tag.ROLLOUT_STARTED, by=by)
        self.refresh_from_db()

    def refused(self, *, reason: str, by: Actor) -> None:
        """End a loading rollout as failed, because not every replica could load the candidate, and record that.

        Raises InvalidTransition if it is not loading.
        """
        with transaction.atomic():
            rollout = self.locked(RolloutStatus.FAILED)
            rollout.enter(RolloutStatus.FAILED, reason)
            rollout.audit(Tag.ROLLOUT_FAILED, by=by, reason=reason)
        self.refresh_from_db()

    def advance(
        self, *, reason: str, by: Actor, expected_generation: int | None = None, evidence: Evidence = None
    ) -> None:
        """Start the next step of the plan with its weight, and record that.

        This also gives the approval for which the present step may wait. `evidence` are the verdicts that decided, by
        default those of now. Raises InvalidTransition if the rollout does not serve or is at its last step, NotAllowed
        if the alias is protected and the signatures do not permit the share, and Conflict if the generation is not the
        expected one.
        """
        with transaction.atomic():
            rollout = self.locked(None, expected_generation)
            if rollout.status not in SERVING or rollout.is_last_step:
                raise InvalidTransition(
                    "The rollout must be serving and have another step: promote it, or resume it first."
                )
            before, evidence = {"step": rollout.step, "weight": rollout.weight}, evidence or judgement(rollout, now())
            rollout.step += 1
            rollout.weight = rollout.steps[rollout.step]["weight"]
            rollout.enter(RolloutStatus.RUNNING, reason)
            rollout.audit(Tag.ROLLOUT_STEPPED, by=by, reason=reason, before=before, evidence=evidence)
        self.refresh_from_db()

    def wait_for_approval(
        self, *, reason: str, by: Actor, expected_generation: int | None = None, evidence: Evidence = None
    ) -> None:
        """Record that the rollout waits for a person's approval of its next step or its promotion.

        Traffic does not change. Raises InvalidTransition if it is not running, NotAllowed if the alias is protected and
        the signatures do not permit the present share, and Conflict if the generation is not the expected one.
        """
        with transaction.atomic():
            rollout = self.locked(RolloutStatus.AWAITING_APPROVAL, expected_generation)
            rollout.enter(RolloutStatus.AWAITING_APPROVAL, reason)
            rollout.audit(Tag.ROLLOUT_WAITS, by=by, reason=reason, evidence=evidence)
        self.refresh_from_db()

    def pause(
        self, *, reason: str, by: Actor, expected_generation: int | None = None, evidence: Evidence = None
    ) -> None:
        """Send everybody to the stable version until the rollout is resumed, and record that.

        Raises InvalidTransition if it does not serve, and Conflict if the generation is not the expected one.
        """
        with transaction.atomic():
            rollout = self.locked(RolloutStatus.PAUSED, expected_generation)
            rollout.enter(RolloutStatus.PAUSED, reason)
            rollout.audit(Tag.ROLLOUT_PAUSED, by=by, reason=reason, evidence=evidence)
        self.refresh_from_db()

    def resume(self, *, reason: str, by: Actor, expected_generation: int | None = None) -> None:
        """Continue a paused rollout with the same weight and salt, so that every user keeps their arm, and record that.

        The time of the present step begins again. Raises InvalidTransition if it is not paused, NotAllowed if the alias
        is protected and the signatures do not permit the share, and Conflict if the generation is not the expected one.
        """
        with transaction.atomic():
            rollout = self.locked(RolloutStatus.RUNNING, expected_generation)
            if rollout.status != RolloutStatus.PAUSED:
                raise InvalidTransition(f"{rollout} is {in_words(rollout.status)}, not paused.")
            rollout.enter(RolloutStatus.RUNNING, reason)
            rollout.audit(Tag.ROLLOUT_RESUMED, by=by, reason=reason)
        self.refresh_from_db()

    def set_weight(self, weight: float, *, reason: str, by: Actor, expected_generation: int | None = None) -> None:
        """Change the candidate's share, in percent of the users, and record that.

        The step of the plan stays; if the rollout runs, the step's time begins again. Raises Invalid above 50 with
        guardrails, InvalidTransition if the rollout neither serves nor is paused, NotAllowed if the alias is protected
        and the signatures do not permit the share, and Conflict if the generation is not the expected one.
        """
        with transaction.atomic():
            rollout = self.locked(None, expected_generation)
            if rollout.status not in (*SERVING, RolloutStatus.PAUSED):
                raise InvalidTransition(f"{rollout} is {in_words(rollout.status)}: its weight cannot be set.")
            if rollout.guardrails and weight > 50:
                raise Invalid(
                    "Above 50 % there is no control group of equal size for the guardrails: promote it instead.",
                    field="weight",
                    code="no_control",
                )
            before, rollout.weight = rollout.weight, weight
            rollout.enter(RolloutStatus(rollout.status), rollout.status_reason)
            rollout.audit(Tag.ROLLOUT_WEIGHT_SET, by=by, reason=reason, before={"weight": before})
        self.refresh_from_db()

    def promote(
        self, *, reason: str, by: Actor, expected_generation: int | None = None, evidence: Evidence = None
    ) -> None:
        """Move the alias to the candidate, which then serves all traffic, end the rollout, and record that.

        The approval of a protected alias is used up. Raises NotAllowed without the approval that a protected alias
        needs, InvalidTransition unless the rollout serves or is paused, and Conflict if the generation is not the
        expected one, an evaluation speaks against the candidate or one that the policy asks for is missing, the
        evidence has changed since it was signed (the approval then lapses), and as `Alias.point_to` does.
        """
        for waiting in self.approvals.open():
            waiting.lapse_when_changed(by=by)
        with transaction.atomic():
            rollout = self.locked(RolloutStatus.PROMOTED, expected_generation)
            approval = rollout.approval() if rollout.alias.quorum else None
            require_no_objection(rollout.candidate, rollout.alias.version)
            require_scores(rollout.candidate, rollout.alias.policy)
            rollout.alias.point_to(rollout.candidate, reason=reason, by=by)
            rollout.enter(RolloutStatus.PROMOTED, reason)
            if approval:
                approval.use(by=by)
            rollout.audit(Tag.ROLLOUT_PROMOTED, by=by, reason=reason, before=served(rollout.stable), evidence=evidence)
        self.refresh_from_db()

    def rollback(self, *, reason: str, by: Actor, evidence: Evidence = None, expected_tag: str = "") -> None:
        """Serve the stable version again, also after a promotion, and record that; a second call changes nothing.

        Raises InvalidTransition for a draft or a rollout that ended otherwise, Conflict if the alias was moved since
        the promotion, and PreconditionFailed if `expected_tag` is given and is not the ETag.
        """
        with transaction.atomic():
            alias = Alias.objects.select_for_update().get(pk=self.alias_id)
            rollout = Rollout.objects.select_for_update().get(pk=self.pk)
            require_tag(rollout, expected_tag)
            if rollout.status != RolloutStatus.ROLLED_BACK:
                rollout.go_back(alias, reason=reason, by=by, evidence=evidence)
        self.refresh_from_db()

    def go_back(self, alias: Alias, *, reason: str, by: Actor, evidence: Evidence) -> None:
        """Roll the locked rollout back and record that; if it was promoted, the alias moves back to the stable version.

        Raises InvalidTransition from a status that cannot be rolled back, and Conflict if the alias was moved since the
        promotion.
        """
        if self.status not in MOVES[RolloutStatus.ROLLED_BACK]:
            raise InvalidTransition(f"The rollout is {in_words(self.status)}: there is nothing to roll back.")
        if self.status == RolloutStatus.PROMOTED:
            if alias.version_id != self.candidate_id or alias.rollouts.active().exists():
                raise Conflict(f"{alias} has been moved since: roll back that move first.", code="alias_moved")
            alias.point_to(self.stable, reason=reason, by=by)
        self.enter(RolloutStatus.ROLLED_BACK, reason)
        self.audit(Tag.ROLLOUT_ROLLED_BACK, by=by, reason=reason, before=served(self.candidate), evidence=evidence)

    def locked(self, target: RolloutStatus | None, expected_generation: int | None = None) -> Rollout:
        """Return the rollout as it is in the database now, with its alias; both are locked.

        Raises Conflict if the generation is not the expected one, and InvalidTransition if `target` may not follow its
        status; None as `target` allows any.
        """
        alias = Alias.objects.select_for_update().get(pk=self.alias_id)
        rollout = Rollout.objects.select_for_update().get(pk=self.pk)
        rollout.alias = alias
        if expected_generation not in (None, rollout.generation):
            raise Conflict(
                f"The rollout is at generation {rollout.generation}, not {expected_generation}: reload it.",
                code="stale_generation",
            )
        if target and rollout.status not in MOVES[target]:
            waits = " Its plan waits for signatures." if rollout.waits_for_signature else ""
            raise InvalidTransition(
                f"The rollout is {in_words(rollout.status)}: it cannot become {in_words(target)}.{waits}"
            )
        return rollout

    def enter(self, status: RolloutStatus, reason: str) -> None:
        """Save the status with its reason, increment the generation, and send the signal of changed routes on commit.

        On entering RUNNING the time of the present step starts again; a rollout that is no longer active gets its end.
        Raises NotAllowed if the alias is protected and the signatures do not permit the candidate's share.
        """
        if status in SERVING:
            self.require_signed_share()
        self.status, self.status_reason = status, reason
        self.generation += 1
        self.ended_at = None if status in ACTIVE else now()
        self.step_at = now() if status == RolloutStatus.RUNNING else self.step_at
        self.save(update_fields=["status", "status_reason", "generation", "ended_at", "weight", "step", "step_at"])
        send_on_commit(routes_changed, alias=self.alias_id)

    def audit(
        self, tag: Tag, *, by: Actor, reason: str = "", before: dict[str, Any] | None = None, evidence: Evidence = None
    ) -> None:
        """Record an audit event with the present status, weight and candidate, and the evidence that decided.

        For the tag of a decision (one of TAGS) a `RolloutDecision` is stored, too, and its verdicts are recorded as
        evidence: the given ones, or those that `RolloutDecision.freeze` finds.
        """
        if tag in TAGS:
            evidence = RolloutDecision.freeze(self, tag, by=by, reason=reason, verdicts=evidence).verdicts
        after = {"status": self.status, "weight": self.weight, "candidate": self.candidate.served_name}
        values = {**after, "evidence": evidence} if evidence else after
        AuditEvent.record(tag, self, by=by, project=self.alias.project, before=before, after=values, reason=reason)
