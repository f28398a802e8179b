"""Retention of records: a retention class, and a legal hold that takes precedence over it."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, ClassVar, Self, cast

from django.db import models, transaction
from django.utils.timezone import now

from adapterhub.audit.models import AuditEvent
from adapterhub.audit.tags import Tag
from adapterhub.core.actor import Actor
from adapterhub.core.errors import Conflict, Invalid


class Retention(models.TextChoices):
    """The retention classes: the time from its creation for which a run or a dataset must be kept.

    An erasure is refused before its end; nothing is deleted by itself after it.
    """

    LIFECYCLE = "lifecycle", "10 years, as the documents of a lifecycle"
    SERVING = "serving", "6 months, as the logs of serving"
    NONE = "none", "until it is erased"


RETAINED_FOR = {
    Retention.LIFECYCLE: timedelta(days=3653),
    Retention.SERVING: timedelta(days=184),
    Retention.NONE: timedelta(0),
}


class RetentionMixin(models.Model):
    """A record with a retention class and a legal hold; `hold_reason` is "" without a hold.

    A subclass has a project and the time of its creation.
    """

    retention = models.CharField(max_length=20, choices=Retention.choices, default=Retention.LIFECYCLE)
    hold_reason = models.TextField(blank=True, default="")

    # The prefix of the tags of its audit events, before the colon.
    subject: ClassVar[str]

    class Meta:
        abstract = True

    @property
    def kept_until(self) -> datetime:
        """Return the time until which the record must be kept: its creation plus the period of its class."""
        created_at: datetime = cast(Any, self).created_at
        return created_at + RETAINED_FOR[Retention(self.retention)]

    def keep_as(self, retention: str, *, reason: str, by: Actor) -> None:
        """Change the retention class, and record it. Raises Invalid for an unknown class."""
        if retention not in Retention.values:
            raise Invalid(f"retention must be one of {', '.join(Retention.values)}.", field="retention")
        self.change("retention_changed", {"retention": retention}, reason=reason, by=by)

    def hold(self, *, reason: str, by: Actor) -> None:
        """Place a legal hold, and record it: nothing of the record can be erased, whatever its class."""
        self.change("hold_placed", {"hold_reason": reason}, reason=reason, by=by)

    def release(self, *, reason: str, by: Actor) -> None:
        """End the legal hold, and record that."""
        self.change("hold_released", {"hold_reason": ""}, reason=reason, by=by)

    def change(self, action: str, fields: dict[str, Any], *, reason: str, by: Actor) -> None:
        """Set the fields of the locked record, and record that under the audit tag `SUBJECT:ACTION`."""
        with transaction.atomic():
            record = type(self)._default_manager.select_for_update().get(pk=self.pk)
            before = {name: getattr(record, name) for name in fields}
            for name, value in fields.items():
                setattr(record, name, value)
            record.save(update_fields=list(fields))
            tag = Tag(f"{self.subject}:{action}")
            project = cast(Any, record).project
            AuditEvent.record(tag, record, by=by, project=project, before=before, after=fields, reason=reason)
        self.refresh_from_db()

    def require_erasable(self) -> Self:
        """Return the record. Raises Conflict under a legal hold or before the retention period ends."""
        if self.hold_reason:
            raise Conflict(f"{self} is under a legal hold: release it first.", code="legal_hold")
        if self.kept_until > now():
            date = f"{self.kept_until:%Y-%m-%d}"
            raise Conflict(f"{self} is kept until {date}: change its retention class first.", code="retained")
        return self


def keep(record: RetentionMixin, *, reason: str, by: Actor, retention: str = "", hold: bool | None = None) -> None:
    """Apply the requested changes of retention class and legal hold in one transaction.

    An empty `retention` and a `hold` of None change nothing, and neither does a value that is set already. Raises
    Invalid for an unknown class.
    """
    with transaction.atomic():
        if retention and retention != record.retention:
            record.keep_as(retention, reason=reason, by=by)
        if hold is not None and hold != bool(record.hold_reason):
            (record.hold if hold else record.release)(reason=reason, by=by)
