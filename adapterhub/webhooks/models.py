"""Webhooks, and the outbox of what is to be delivered to them.

A trigger on the audit trail writes the outbox, so that a change, its event and its deliveries are one transaction.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import uuid
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.contrib.postgres.fields import ArrayField
from django.db import models, transaction
from django.db.models import F, Q
from django.db.models.functions import Now
from django.utils.timezone import now

from adapterhub import outbound
from adapterhub.accounts.models import Project, User
from adapterhub.audit.models import AuditEvent
from adapterhub.audit.tags import Tag
from adapterhub.core.actor import Actor
from adapterhub.core.errors import Invalid, InvalidTransition

# Longer than the outbound client waits; a worker that died in between leaves the row due again.
CLAIMED_FOR = timedelta(seconds=60)
FIRST_PAUSE_S, LONGEST_PAUSE_S = 5, 6 * 3600
MOST_ATTEMPTS = 15
SUBJECTS = {tag.partition(":")[0] for tag in Tag}


class Webhook(models.Model):
    """An address that is told of a project's changes. Its secret is derived from the installation's, never stored."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    project = models.ForeignKey(Project, models.PROTECT, related_name="webhooks")
    url = models.CharField(max_length=500)
    events = ArrayField(models.CharField(max_length=60), help_text="Tags, e.g. rollout:promoted or rollout:*.")
    created_by = models.ForeignKey(User, models.PROTECT, null=True, related_name="+")
    created_at = models.DateTimeField(default=now, editable=False)
    revoked_at = models.DateTimeField(null=True, editable=False)

    class Meta:
        ordering = ["-created_at"]

    def __str__(self) -> str:
        return self.url

    @property
    def key(self) -> bytes:
        """32 bytes that sign what is sent to it."""
        return hmac.digest(settings.SECRET_KEY.encode(), b"adapterhub.webhook.v1\n" + self.pk.bytes, hashlib.sha256)

    @property
    def secret(self) -> str:
        """The key as Standard Webhooks writes it."""
        return f"whsec_{base64.b64encode(self.key).decode()}"

    @classmethod
    def create(cls, project: Project, url: str, events: list[str], *, by: Actor) -> Webhook:
        """Raises Invalid naming the field."""
        require_address(url)
        require_events(events)
        with transaction.atomic():
            webhook = cls.objects.create(project=project, url=url, events=events, created_by=by.user)
            after = {"url": url, "events": events}
            AuditEvent.record(Tag.WEBHOOK_CREATED, webhook, by=by, project=project, after=after)
        return webhook

    def revoke(self, *, by: Actor, reason: str = "") -> None:
        """Deliver nothing more to it; twice is as once."""
        with transaction.atomic():
            webhook = Webhook.objects.select_for_update().get(pk=self.pk)
            if webhook.revoked_at is None:
                Webhook.objects.filter(pk=self.pk).update(revoked_at=Now())
                AuditEvent.record(Tag.WEBHOOK_REVOKED, self, by=by, project=self.project, reason=reason)
        self.refresh_from_db()


def require_address(url: str) -> None:
    """Raises Invalid when the guarded client would refuse the address now."""
    try:
        outbound.pinned(url, settings.WEBHOOK_HOSTS)
    except outbound.Forbidden as error:
        raise Invalid(str(error), field="url", code="forbidden_address") from None


def require_events(events: list[str]) -> None:
    known = {*Tag, *(f"{subject}:*" for subject in SUBJECTS)}
    if unknown := [event for event in events if event not in known]:
        raise Invalid(f"{unknown[0]!r} is no event: e.g. rollout:promoted, or rollout:* for all of one kind.",
                      field="events", code="unknown_event")  # fmt: skip
    if not events:
        raise Invalid("Name at least one event, e.g. rollout:*.", field="events", code="no_event")


class DeliveryStatus(models.TextChoices):
    PENDING = "pending"
    DELIVERED = "delivered"
    FAILED = "failed"


class DeliveryQuerySet(models.QuerySet["Delivery"]):
    def due(self) -> DeliveryQuerySet:
        """What has to be sent now, by the database's clock, to webhooks that were not revoked."""
        return self.filter(status=DeliveryStatus.PENDING, next_at__lte=Now(), webhook__revoked_at=None)


class Delivery(models.Model):
    """One event for one webhook: sent until it is taken, or too often."""

    webhook = models.ForeignKey(Webhook, models.PROTECT, related_name="deliveries")
    event = models.ForeignKey(AuditEvent, models.PROTECT, related_name="deliveries")
    status = models.CharField(max_length=20, choices=DeliveryStatus.choices, default=DeliveryStatus.PENDING)
    attempts = models.PositiveIntegerField(default=0)
    next_at = models.DateTimeField(default=now)
    created_at = models.DateTimeField(default=now)

    objects = DeliveryQuerySet.as_manager()

    class Meta:
        ordering = ["-id"]
        verbose_name_plural = "deliveries"
        constraints = [models.UniqueConstraint(fields=["webhook", "event"], name="one_delivery_per_event")]
        indexes = [models.Index(fields=["next_at"], condition=Q(status="pending"), name="deliveries_to_send")]

    def __str__(self) -> str:
        return f"{self.event.tag} to {self.webhook}"

    def claim(self) -> bool:
        """Take it for one attempt; False when another worker has it."""
        due = Delivery.objects.due().filter(pk=self.pk, attempts=self.attempts)
        taken = due.update(attempts=F("attempts") + 1, next_at=Now() + CLAIMED_FOR)
        self.attempts += 1
        return bool(taken)

    def note(self, *, answer: int | None, error: str) -> None:
        """Write the attempt into the log and decide what follows, unless another attempt has begun."""
        taken = answer is not None and 200 <= answer < 300
        ended = DeliveryStatus.DELIVERED if taken else DeliveryStatus.FAILED
        status = ended if taken or self.attempts % MOST_ATTEMPTS == 0 else DeliveryStatus.PENDING
        with transaction.atomic():
            Attempt.objects.create(delivery=self, number=self.attempts, answer=answer, error=error[:500])
            mine = Delivery.objects.filter(pk=self.pk, attempts=self.attempts, status=DeliveryStatus.PENDING)
            mine.update(status=status, next_at=Now() + pause_after(self.attempts))

    def redeliver(self, *, by: Actor) -> None:
        """Send it again now, also when it was taken; the receiver knows it by its id. Raises InvalidTransition."""
        if self.webhook.revoked_at:
            raise InvalidTransition("The webhook was revoked: create a new one.")
        with transaction.atomic():
            Delivery.objects.filter(pk=self.pk).update(status=DeliveryStatus.PENDING, next_at=Now())
            AuditEvent.record(Tag.WEBHOOK_REDELIVERED, self, by=by, project=self.webhook.project)
        self.refresh_from_db()


class Attempt(models.Model):
    """One attempt of a delivery: the status of the answer, or why there was none."""

    delivery = models.ForeignKey(Delivery, models.PROTECT, related_name="log")
    number = models.PositiveIntegerField()
    answer = models.PositiveSmallIntegerField(null=True)
    error = models.CharField(max_length=500, blank=True)
    at = models.DateTimeField(default=now)

    class Meta:
        ordering = ["id"]

    def __str__(self) -> str:
        return f"attempt {self.number}: {self.answer or self.error}"


def pause_after(attempts: int) -> timedelta:
    """5 s, 10 s, 20 s, ... 6 h, and from the start again after a redelivery: 15 attempts take about 17 hours."""
    return timedelta(seconds=min(FIRST_PAUSE_S * 2 ** ((attempts - 1) % MOST_ATTEMPTS), LONGEST_PAUSE_S))


def body_of(event: AuditEvent) -> dict[str, Any]:
    """What a receiver is told: type, timestamp, data, as Standard Webhooks has it."""
    told = ("sequence", "object_type", "object_id", "object_name", "actor_name", "before", "after", "reason")
    fields = {name: getattr(event, name) for name in told}
    project = event.project.slug if event.project else None
    return {"type": event.tag, "timestamp": event.at.isoformat(), "data": {"project": project, **fields}}
