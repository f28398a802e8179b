"""Erasure of a dataset's content, requested by one person and approved by another; row, digest and audit trail stay."""

from __future__ import annotations

from django.db import models, transaction
from django.db.models import F, Q
from django.utils.timezone import now

from adapterhub.accounts.models import User
from adapterhub.accounts.signing_rules import Meaning, people_behind, require_another, require_role_for
from adapterhub.audit.models import AuditEvent
from adapterhub.audit.tags import Tag
from adapterhub.core.actor import Actor
from adapterhub.core.errors import InvalidTransition
from adapterhub.core.tenancy import APPROVE
from training.models.dataset import Dataset, DatasetStatus


class ErasureStatus(models.TextChoices):
    """The states of an erasure: pending until a second person approves or rejects it."""

    PENDING = "pending"
    APPROVED = "approved"
    REJECTED = "rejected"


class Erasure(models.Model):
    """A request to erase a dataset's content for good, and the decision of a second person; each step is recorded."""

    dataset = models.ForeignKey(Dataset, models.PROTECT, related_name="erasures")
    reason = models.TextField()
    author = models.ForeignKey(User, models.PROTECT, null=True, related_name="+")
    author_name = models.CharField(max_length=200)
    status = models.CharField(max_length=10, choices=ErasureStatus.choices, default=ErasureStatus.PENDING)
    signer = models.ForeignKey(User, models.PROTECT, null=True, related_name="+")
    meaning = models.CharField(max_length=10, choices=Meaning.choices, blank=True)
    created_at = models.DateTimeField(default=now, editable=False)
    decided_at = models.DateTimeField(null=True)

    class Meta:
        ordering = ["-id"]
        constraints = [
            models.UniqueConstraint(
                fields=["dataset"], condition=Q(status__in=("pending", "approved")), name="one_erasure"
            ),
            models.CheckConstraint(
                condition=Q(signer=None) | Q(author=None) | ~Q(signer=F("author")), name="eraser_is_another"
            ),
            models.CheckConstraint(condition=Q(status="pending") | ~Q(signer=None), name="an_erasure_is_signed"),
        ]

    def __str__(self) -> str:
        return f"erasure of {self.dataset}"

    @classmethod
    def request(cls, dataset: Dataset, *, reason: str, by: Actor) -> Erasure:
        """Request the erasure and return the pending request, which may be an earlier one; each call is recorded.

        Raises Conflict under a legal hold or before the retention period ends, and Invalid if no person stands behind
        `by` or the dataset is not ready.
        """
        people_behind(by)
        with transaction.atomic():
            dataset.lock().require_erasable().require_ready()
            erasure, _ = cls.objects.get_or_create(
                dataset=dataset,
                status=ErasureStatus.PENDING,
                defaults={"reason": reason, "author": by.user, "author_name": by.name},
            )
            AuditEvent.record(Tag.ERASURE_REQUESTED, dataset, by=by, project=dataset.project, reason=reason)
        return erasure

    def approve(self, *, reason: str, by: Actor, meaning: str = Meaning.APPROVED) -> None:
        """Approve as a second person, and record that.

        The dataset is then erased, and `drop_content` deletes its bytes. Raises NotAllowed for the request's author,
        for tokens and for people without the role, InvalidTransition if it was decided before, and Conflict under a
        legal hold or before the retention period ends.
        """
        with transaction.atomic():
            erasure = self.decided(ErasureStatus.APPROVED, meaning, by)
            dataset = erasure.dataset.lock().require_erasable()
            dataset.status = DatasetStatus.ERASED
            dataset.save(update_fields=["status"])
            AuditEvent.record(
                Tag.DATASET_ERASED,
                dataset,
                by=by,
                project=dataset.project,
                reason=reason,
                before={"digest": dataset.digest},
                after={"meaning": str(meaning)},
            )
        self.refresh_from_db()

    def reject(self, *, reason: str, by: Actor, meaning: str = Meaning.REVIEWED) -> None:
        """Reject the erasure as a second person, and record that; the content is kept.

        Raises NotAllowed and InvalidTransition as `approve` does.
        """
        with transaction.atomic():
            erasure = self.decided(ErasureStatus.REJECTED, meaning, by)
            AuditEvent.record(
                Tag.ERASURE_REJECTED, erasure.dataset, by=by, project=erasure.dataset.project, reason=reason
            )
        self.refresh_from_db()

    def drop_content(self) -> None:
        """Delete the bytes if the erasure was approved; it is safe to call twice."""
        if self.status == ErasureStatus.APPROVED:
            self.dataset.drop_content()

    def decided(self, status: ErasureStatus, meaning: str, by: Actor) -> Erasure:
        """Store the decision of another person and return the locked row; the caller records the audit event.

        Raises InvalidTransition if it was decided before, and NotAllowed for its author, tokens and people without the
        role.
        """
        erasure = Erasure.objects.select_for_update(of=("self",)).select_related("dataset__project").get(pk=self.pk)
        user = require_role_for(APPROVE, erasure.dataset.project, by)
        require_another(user, [erasure.author])
        if erasure.status != ErasureStatus.PENDING:
            raise InvalidTransition(f"The {erasure} is {erasure.status} already.")
        erasure.status, erasure.signer, erasure.meaning, erasure.decided_at = status, user, meaning, now()
        erasure.save(update_fields=["status", "signer", "meaning", "decided_at"])
        return erasure


def drop_erased() -> int:
    """Delete bytes of erased datasets that remained because a process died after the commit.

    Return the number of all erased datasets, also of those that had no bytes left.
    """
    erased = Dataset.objects.filter(status=DatasetStatus.ERASED)
    for dataset in erased:
        dataset.drop_content()
    return erased.count()
