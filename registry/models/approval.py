"""Approvals: changes to production need a second person. Database triggers enforce the rules, also against raw SQL."""

from __future__ import annotations

import hashlib
import uuid
from datetime import timedelta
from typing import Any

import rfc8785
from django.contrib.postgres.fields import ArrayField
from django.db import models, transaction
from django.db.models import F, Q
from django.utils.timezone import now

from adapterhub.accounts.models import Project, User
from adapterhub.accounts.signing_rules import (
    Meaning,
    mail_keys,
    people_behind,
    people_of,
    require_another,
    require_role_for,
)
from adapterhub.audit.models import AuditEvent
from adapterhub.audit.tags import Tag
from adapterhub.core.actor import Actor
from adapterhub.core.domain_signals import send_on_commit
from adapterhub.core.errors import Conflict, InvalidTransition
from adapterhub.core.tenancy import APPROVE, Scope
from registry.domain_signals import routes_changed
from registry.models.decision import verdicts_of

REVIEW_WITHIN = timedelta(hours=24)


class ApprovalKind(models.TextChoices):
    """The subjects of an approval: the promotion of a rollout, or a change of an alias' policy."""

    PROMOTION = "promotion"
    ALIAS_POLICY = "alias_policy", "policy of an alias"


class ApprovalStatus(models.TextChoices):
    """The states of an approval.

    USED is one whose change was made. LAPSED was replaced by a newer request, or its evidence changed. GLASS_BROKEN
    allows the change without signatures until a person reviews it (REVIEWED).
    """

    PENDING = "pending"
    APPROVED = "approved"
    REJECTED = "rejected"
    LAPSED = "lapsed"
    USED = "used"
    GLASS_BROKEN = "glass_broken", "glass broken"
    REVIEWED = "reviewed"


OPEN = (ApprovalStatus.PENDING, ApprovalStatus.APPROVED, ApprovalStatus.GLASS_BROKEN)


def digest_of(evidence: dict[str, Any]) -> str:
    """Return the sha256 in hexadecimal of the evidence's canonical JSON, which a signature is bound to."""
    return hashlib.sha256(rfc8785.dumps(evidence)).hexdigest()


class ApprovalQuerySet(models.QuerySet["Approval"]):
    """Approvals, selected by the step that they wait for."""

    def open(self) -> ApprovalQuerySet:
        """Return approvals that are pending, approved but unused, or allowed by break-glass and not yet reviewed."""
        return self.filter(status__in=OPEN)

    def waiting(self) -> ApprovalQuerySet:
        """Return approvals that wait for a person: for a signature, or for the review of a break-glass change."""
        return self.filter(status__in=(ApprovalStatus.PENDING, ApprovalStatus.GLASS_BROKEN))


class Approval(models.Model):
    """A request for a change that one person may not make alone, with the evidence as it was at the request."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    project = models.ForeignKey(Project, models.PROTECT, related_name="approvals")
    kind = models.CharField(max_length=20, choices=ApprovalKind.choices)
    alias = models.ForeignKey("registry.Alias", models.PROTECT, related_name="approvals")
    rollout = models.ForeignKey("registry.Rollout", models.PROTECT, null=True, related_name="approvals")
    candidate = models.ForeignKey("registry.AdapterVersion", models.PROTECT, null=True, related_name="approvals")
    policy = models.JSONField(null=True)
    evidence = models.JSONField()
    bound = models.CharField(max_length=64)
    quorum = models.PositiveIntegerField()
    reason = models.TextField()
    author = models.ForeignKey(User, models.PROTECT, null=True, related_name="+")
    author_name = models.CharField(max_length=200)
    people = ArrayField(
        models.BigIntegerField(),
        default=list,
        help_text="Keys of the people behind the request, who may not sign it.",
    )
    status = models.CharField(max_length=20, choices=ApprovalStatus.choices, default=ApprovalStatus.PENDING)
    broken_by = models.ForeignKey(User, models.PROTECT, null=True, related_name="+")
    review_due_at = models.DateTimeField(null=True)
    created_at = models.DateTimeField(default=now, editable=False)
    decided_at = models.DateTimeField(null=True)

    objects = ApprovalQuerySet.as_manager()

    class Meta:
        ordering = ["-created_at"]
        constraints = [
            models.UniqueConstraint(
                fields=["alias", "kind"], condition=Q(status__in=("pending", "approved")), name="one_open_approval"
            ),
            models.CheckConstraint(condition=Q(quorum__gte=1), name="quorum_is_somebody"),
        ]

    def __str__(self) -> str:
        noun = "promotion" if self.kind == ApprovalKind.PROMOTION else "change of the policy"
        return f"{noun} of {self.alias}"

    @classmethod
    def request(
        cls, kind: ApprovalKind, alias: Any, *, evidence: dict[str, Any], reason: str, by: Actor, **subject: Any
    ) -> Approval:
        """Create a request for signatures and record it; open requests of the same kind on this alias lapse.

        `subject` are the fields that name what is to be approved (rollout, candidate or policy). Raises Conflict while
        a break-glass change of the alias is overdue for its review, and Invalid if no person stands behind the actor,
        because then nobody could be known to be another person.
        """
        people = people_behind(by)
        with transaction.atomic():
            require_no_overdue_review(alias)
            for stale in cls.objects.select_for_update().filter(alias=alias, kind=kind, status__in=OPEN[:2]):
                stale.enter(ApprovalStatus.LAPSED, Tag.APPROVAL_LAPSED, by=by, reason="Replaced by a newer request.")
            approval = cls.objects.create(
                project=alias.project,
                kind=kind,
                alias=alias,
                evidence=evidence,
                bound=digest_of(evidence),
                quorum=alias.quorum,
                reason=reason,
                author=by.user,
                author_name=by.name,
                people=sorted(person.pk for person in people),
                **subject,
            )
            approval.record(Tag.APPROVAL_REQUESTED, by=by, reason=reason)
        return approval

    def approve(self, *, reason: str, by: Actor, meaning: str = Meaning.APPROVED, seen: str = "") -> None:
        """Sign the request and record that; the last signature of the quorum approves it.

        `meaning` is the signer's part in the change, one of Meaning. `seen` is the digest of the evidence that the
        signer read; empty means the request's own. Raises Conflict if the evidence differs from that or has changed
        since the request, which then lapses, and for a second signature of one person; InvalidTransition if the request
        is not pending; NotAllowed for a person who may not sign.
        """
        self.lapse_when_changed(by=by)
        with transaction.atomic():
            approval = self.locked(ApprovalStatus.PENDING)
            approval.require_may_sign(by)
            if seen and seen != approval.bound:
                raise Conflict(
                    "The evidence of this request has changed since you read it: reload the page.",
                    code="evidence_changed",
                )
            approval.sign("approve", meaning, reason, by)
            approval.record(Tag.APPROVAL_SIGNED, by=by, reason=reason, after={"meaning": str(meaning)})
            if approval.signatures.filter(decision="approve").count() >= approval.quorum:
                approval.enter(ApprovalStatus.APPROVED, Tag.APPROVAL_APPROVED, by=by, reason=reason)
        self.refresh_from_db()

    def reject(self, *, reason: str, by: Actor) -> None:
        """Reject the request for good, with a signature, and record that.

        Raises InvalidTransition if it is not pending, NotAllowed for a person who may not sign, and Conflict for one
        who has signed already.
        """
        with transaction.atomic():
            approval = self.locked(ApprovalStatus.PENDING)
            approval.require_may_sign(by)
            approval.sign("reject", Meaning.REVIEWED, reason, by)
            approval.enter(ApprovalStatus.REJECTED, Tag.APPROVAL_REJECTED, by=by, reason=reason)
        self.refresh_from_db()

    def break_glass(self, *, reason: str, by: Actor) -> None:
        """Allow the change now without signatures (break glass) and record that.

        Another person must review it within 24 hours. Raises InvalidTransition if the request is not pending, and
        NotAllowed for tokens and service accounts, and for people without scope operate.
        """
        with transaction.atomic():
            approval = self.locked(ApprovalStatus.PENDING)
            require_role_for(Scope.OPERATE, approval.project, by)
            approval.broken_by, approval.review_due_at = by.user, now() + REVIEW_WITHIN
            approval.enter(ApprovalStatus.GLASS_BROKEN, Tag.GLASS_BROKEN, by=by, reason=reason)
        self.refresh_from_db()

    def review(self, *, reason: str, by: Actor) -> None:
        """Sign the review of a break-glass change, and record that.

        Raises InvalidTransition if no glass was broken or it is reviewed already, NotAllowed for a person who may not
        sign, and Conflict for one who has signed already.
        """
        with transaction.atomic():
            approval = self.locked(ApprovalStatus.GLASS_BROKEN)
            approval.require_may_sign(by)
            approval.sign("review", Meaning.REVIEWED, reason, by)
            approval.enter(ApprovalStatus.REVIEWED, Tag.GLASS_REVIEWED, by=by, reason=reason)
        self.refresh_from_db()

    def use(self, *, by: Actor) -> None:
        """Mark the approval as used and record that; one that break-glass allowed stays open for its review.

        Call it only in the transaction that makes the approved change.
        """
        if self.status == ApprovalStatus.APPROVED:
            self.enter(ApprovalStatus.USED, Tag.APPROVAL_USED, by=by)

    def lapse_when_changed(self, *, by: Actor) -> None:
        """Raise Conflict if the evidence of an open approval has changed since the request; the approval then lapses.

        One that break-glass allowed stays open for its review. Nothing happens if the evidence is the same.
        """
        if self.status not in OPEN or self.bound == self.bound_now():
            return
        with transaction.atomic():
            approval = Approval.objects.select_for_update().get(pk=self.pk)
            if approval.status in OPEN[:2]:
                approval.enter(ApprovalStatus.LAPSED, Tag.APPROVAL_LAPSED, by=by, reason="The evidence has changed.")
        self.refresh_from_db()
        raise Conflict(f"The evidence has changed since the request: request the {self} again.", code="approval_lapsed")

    def bound_now(self) -> str:
        """Return the digest of the evidence as it is now."""
        return digest_of(self.rollout.evidence() if self.rollout else self.alias.policy_evidence(self.policy or {}))

    def locked(self, status: ApprovalStatus) -> Approval:
        """Return the approval, read again and locked. Raises InvalidTransition unless it has the status."""
        approval = Approval.objects.select_for_update().get(pk=self.pk)
        if approval.status != status:
            present = approval.get_status_display().lower()
            raise InvalidTransition(f"The {approval} is {present}, not {status.label.lower()}.")
        return approval

    def require_may_sign(self, by: Actor) -> None:
        """Check that the actor is a person who may sign the approval; its status is not checked.

        Raises NotAllowed for tokens, service accounts, inactive accounts, people without the role or
        without a mail address, and authors (also under a second account), and Conflict for somebody who has
        signed it already.
        """
        user = require_role_for(APPROVE, self.project, by)
        require_another(user, self.authors())
        if self.signatures.filter(Q(user=user) | Q(person__in=mail_keys([user]))).exists():
            raise Conflict("You have already signed this: another person must sign.", code="already_signed")

    def authors(self) -> list[User]:
        """Return the accounts that may not sign, as they took part in the change that is to be approved.

        They requested it, broke the glass, opened the rollout, edited its plan, made the version, or are the person
        behind a token or account that did.
        """
        rollout, candidate = self.rollout, self.candidate
        named = (self.author, self.broken_by, rollout and rollout.created_by, candidate and candidate.created_by)
        behind = Q(pk__in=self.people)
        if rollout:
            edits = AuditEvent.objects.about(rollout).filter(tag=Tag.ROLLOUT_EDITED).exclude(actor=None)
            behind |= Q(pk__in=edits.values("actor"))
        return [*User.objects.filter(behind), *(author for author in named if author)]

    def may_be_signed_by(self, user: User) -> bool:
        """Return True if the user is none of the people behind the request.

        The user's role and earlier signatures are not checked.
        """
        return user not in people_of(self.authors())

    def sign(self, decision: str, meaning: str, reason: str, by: Actor) -> None:
        """Store a signature, with the digest of the request's evidence and the rollout's verdicts at that time.

        `decision` is "approve", "reject" or "review", `meaning` one of Meaning. The caller checks that `by` may sign.
        """
        self.signatures.create(
            author=self.author,
            user=by.user,
            name=by.name,
            decision=decision,
            meaning=meaning,
            reason=reason,
            bound=self.bound,
            verdicts=verdicts_of(self.rollout) if self.rollout else None,
            auth_method=by.method,
        )

    def enter(self, status: ApprovalStatus, tag: Tag, *, by: Actor, reason: str = "") -> None:
        """Set the status and its time, save and record that, and send the signal that routes may change."""
        before, self.status, self.decided_at = self.status, status, now()
        self.save(update_fields=["status", "decided_at", "broken_by", "review_due_at"])
        # The candidate's permitted share follows the approval.
        send_on_commit(routes_changed, alias=self.alias_id)
        self.record(tag, by=by, reason=reason, before={"status": before})

    def record(self, tag: Tag, *, by: Actor, reason: str = "", **change: Any) -> None:
        """Record an audit event that carries the evidence; `after` is the status unless `change` names it."""
        AuditEvent.record(
            tag,
            self,
            by=by,
            project=self.project,
            reason=reason,
            evidence=self.evidence,
            **{"after": {"status": self.status}, **change},
        )


class Signature(models.Model):
    """One person's signature on an approval: name, time, meaning, and the evidence's digest.

    `verdicts` are those of the approval's rollout at that time.
    """

    approval = models.ForeignKey(Approval, models.PROTECT, related_name="signatures")
    # Copied from the approval so that a constraint can compare author and user; a trigger refuses any other value.
    author = models.ForeignKey(User, models.PROTECT, null=True, related_name="+")
    user = models.ForeignKey(User, models.PROTECT, related_name="signatures")
    name = models.CharField(max_length=200)
    decision = models.CharField(
        max_length=10, choices=[("approve", "approve"), ("reject", "reject"), ("review", "review")]
    )
    meaning = models.CharField(max_length=10, choices=Meaning.choices)
    reason = models.TextField()
    bound = models.CharField(max_length=64)
    verdicts = models.JSONField(
        null=True,
        editable=False,
        help_text="The rollout's analysis when this was signed; null for a policy and before it is opened.",
    )
    auth_method = models.CharField(max_length=20)
    # The signer's mail address in the form of `accounts_mail_key`, which a trigger writes.
    person = models.CharField(max_length=254, editable=False)
    at = models.DateTimeField(default=now, editable=False)

    class Meta:
        ordering = ["at"]
        constraints = [
            models.UniqueConstraint(fields=["approval", "user"], name="one_signature_a_person"),
            models.UniqueConstraint(fields=["approval", "person"], name="one_signature_a_mail_address"),
            models.CheckConstraint(condition=Q(author=None) | ~Q(author=F("user")), name="signer_is_not_the_author"),
        ]

    def __str__(self) -> str:
        return f"{self.name}: {self.meaning}"


def require_no_overdue_review(alias: Any) -> None:
    """Check that no break-glass change of the alias is overdue for its review. Raises Conflict."""
    overdue = Approval.objects.filter(alias=alias, status=ApprovalStatus.GLASS_BROKEN, review_due_at__lt=now())
    if overdue.exists():
        raise Conflict(
            f"A broken-glass change of {alias} is waiting for its review: review it first.", code="review_overdue"
        )
