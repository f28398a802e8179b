"""Webhooks, and the outbox of their deliveries.

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

# Longer than the outbound client's timeout; after a worker died in between, the row is due again.
CLAIMED_FOR = timedelta(seconds=60)
FIRST_PAUSE_S, LONGEST_PAUSE_S = 5, 6 * 3600
MOST_ATTEMPTS = 15
SUBJECTS = {tag.partition(":")[0] for tag in Tag}


class Webhook(models.Model):
    """An address that receives a project's events. Its signing secret is derived from SECRET_KEY and never stored."""

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
        """Return the 32-byte key that signs the webhook's deliveries."""
        return hmac.digest(settings.SECRET_KEY.encode(), b"adapterhub.webhook.v1\n" + self.pk.bytes, hashlib.sha256)

    @property
    def secret(self) -> str:
        """Return the key in the format of Standard Webhooks: `whsec_` and base64."""
        return f"whsec_{base64.b64encode(self.key).decode()}"

    @classmethod
    def create(cls, project: Project, url: str, events: list[str], *, by: Actor) -> Webhook:
        """Create a webhook, record it and return it.

        `events` are tags of the audit trail, such as `rollout:promoted`, or `rollout:*` for all of a kind. Raises
        Invalid for an unknown event, an empty list, or an address that is not allowed.
        """
        require_address(url)
        require_events(events)
        with transaction.atomic():
            webhook = cls.objects.create(project=project, url=url, events=events, created_by=by.user)
            after = {"url": url, "events": events}
            AuditEvent.record(Tag.WEBHOOK_CREATED, webhook, by=by, project=project, after=after)
        return webhook

    def revoke(self, *, by: Actor, reason: str = "") -> None:
        """Stop deliveries to the webhook and record it; a second call changes nothing."""
        with transaction.atomic():
            webhook = Webhook.objects.select_for_update().get(pk=self.pk)
            if webhook.revoked_at is None:
                Webhook.objects.filter(pk=self.pk).update(revoked_at=Now())
                AuditEvent.record(Tag.WEBHOOK_REVOKED, self, by=by, project=self.project, reason=reason)
        self.refresh_from_db()


def require_address(url: str) -> None:
    """Raise Invalid unless webhooks may be sent to the URL, which must be https without a user name.

    Its host must be listed in WEBHOOK_HOSTS and have public addresses only, as it resolves now.
    """
    try:
        outbound.pinned(url, settings.WEBHOOK_HOSTS)
    except outbound.Forbidden as error:
        raise Invalid(str(error), field="url", code="forbidden_address") from None


def require_events(events: list[str]) -> None:
    """Raise Invalid unless there is at least one event and each is an audit tag or all of a kind, as `rollout:*`."""
    known = {*Tag, *(f"{subject}:*" for subject in SUBJECTS)}
    if unknown := [event for event in events if event not in known]:
        raise Invalid(
            f"{unknown[0]!r} is not an event: use e.g. rollout:promoted, or rollout:* for all events of a kind.",
            field="events",
            code="unknown_event",
        )
    if not events:
        raise Invalid("Name at least one event, e.g. rollout:*.", field="events", code="no_event")


class DeliveryStatus(models.TextChoices):
    """The states of a delivery."""

    PENDING = "pending"
    DELIVERED = "delivered"
    FAILED = "failed"


class DeliveryQuerySet(models.QuerySet["Delivery"]):
    """Query set of deliveries, filtered by their status."""

    def due(self) -> DeliveryQuerySet:
        """Return the pending deliveries that are due, by the database's clock, of webhooks that are not revoked."""
        return self.filter(status=DeliveryStatus.PENDING, next_at__lte=Now(), webhook__revoked_at=None)


class Delivery(models.Model):
    """The delivery of one event to one webhook, retried until the receiver accepts it or 15 attempts have failed."""

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
        """Claim the delivery for one attempt and return True; False if another worker has it or it is no longer due.

        The attempt is counted; the delivery is due again after CLAIMED_FOR, in case the worker dies before `note`.
        """
        due = Delivery.objects.due().filter(pk=self.pk, attempts=self.attempts)
        claimed = due.update(attempts=F("attempts") + 1, next_at=Now() + CLAIMED_FOR)
        self.attempts += 1
        return bool(claimed)

    def note(self, *, answer: int | None, error: str) -> None:
        """Log an attempt with its HTTP status, None if no answer came, and set the delivery's status and next time.

        200 to 299 is a success; every 15th failed attempt fails the delivery; before that it is tried again after a
        pause that grows. If another attempt has begun meanwhile, only the log is written.
        """
        is_delivered = answer is not None and 200 <= answer < 300
        ended = DeliveryStatus.DELIVERED if is_delivered else DeliveryStatus.FAILED
        status = ended if is_delivered or self.attempts % MOST_ATTEMPTS == 0 else DeliveryStatus.PENDING
        with transaction.atomic():
            Attempt.objects.create(delivery=self, number=self.attempts, answer=answer, error=error[:500])
            claimed = Delivery.objects.filter(pk=self.pk, attempts=self.attempts, status=DeliveryStatus.PENDING)
            claimed.update(status=status, next_at=Now() + pause_after(self.attempts))

    def redeliver(self, *, by: Actor) -> None:
        """Schedule the delivery again for now, even if it succeeded, and record it; the receiver knows it by its id.

        Raises InvalidTransition when the webhook was revoked.
        """
        if self.webhook.revoked_at:
            raise InvalidTransition("The webhook was revoked: create a new one.")
        with transaction.atomic():
            Delivery.objects.filter(pk=self.pk).update(status=DeliveryStatus.PENDING, next_at=Now())
            AuditEvent.record(Tag.WEBHOOK_REDELIVERED, self, by=by, project=self.webhook.project)
        self.refresh_from_db()


class Attempt(models.Model):
    """An attempt of a delivery: the status of the response, or the error."""

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
    """Return the pause after so many attempts: 5 s, 10 s, 20 s, ... up to 6 h; after each 15th it starts over at 5 s.

    15 attempts take about 17 hours.
    """
    return timedelta(seconds=min(FIRST_PAUSE_S * 2 ** ((attempts - 1) % MOST_ATTEMPTS), LONGEST_PAUSE_S))


def body_of(event: AuditEvent) -> dict[str, Any]:
    """Return the payload of an event as Standard Webhooks defines it: type, timestamp, data.

    `type` is the audit tag, `timestamp` in ISO 8601; `project` in `data` is the slug, None for an event of no project.
    """
    names = ("sequence", "object_type", "object_id", "object_name", "actor_name", "before", "after", "reason")
    fields = {name: getattr(event, name) for name in names}
    project = event.project.slug if event.project else None
    return {"type": event.tag, "timestamp": event.at.isoformat(), "data": {"project": project, **fields}}
