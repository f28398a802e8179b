"""The audit trail: append-only, with one hash chain per project."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import Any, cast

import rfc8785
from django.conf import settings
from django.db import connection, models, transaction
from django.db.models.functions import Length
from django.utils.timezone import now

from adapterhub.audit import verifier as chain
from adapterhub.audit.event_limits import shortened, shortened_text
from adapterhub.audit.sentences import sentence
from adapterhub.audit.tags import READS, Tag
from adapterhub.core.actor import Actor
from adapterhub.core.tenancy import Tenant, row_of

JsonObject = dict[str, Any]
# What one page or answer holds of a trail: events, and bytes of what was hashed. AT_ONCE are read from a cursor.
MOST_EVENTS, MOST_BYTES, AT_ONCE = 1_000, 4 * 2**20, 20
APPEND = """SELECT id, sequence, canonical, prev_hash, hash FROM audit_append(
    %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)"""


class AuditEventQuerySet(models.QuerySet["AuditEvent"]):
    """Query set of audit events, filtered by their chain and the object that they are about."""

    def of_chain(self, project: Tenant | None) -> AuditEventQuerySet:
        """Return the events of one chain in order; None is the chain of the installation itself."""
        return self.filter(project=row_of(project)).order_by("sequence")

    def fitting(self, most: int = MOST_EVENTS, size: int = MOST_BYTES) -> list[AuditEvent]:
        """Return the first events: at most `most`, which hold at most `size` bytes together, but always the first one.

        An event may hold 600 kB, so that a number of events alone bounds no memory.
        """
        ends = accumulate(self.values_list(Length("canonical"), flat=True)[:most])
        return list(self[: max(1, sum(end <= size for end in ends))])

    def in_parts(self) -> Iterator[AuditEvent]:
        """Yield all events, of which AT_ONCE are read at a time, since each may be as large as `fitting` says."""
        return self.iterator(chunk_size=AT_ONCE)

    def without_reads(self) -> AuditEventQuerySet:
        """Return the events that changed something or were refused, without mere reads."""
        return self.exclude(tag__in=READS)

    def about(self, record: models.Model) -> AuditEventQuerySet:
        """Return the events of one object, newest first."""
        return self.filter(object_type=record._meta.model_name, object_id=str(record.pk)).order_by("-id")


class AuditEvent(models.Model):
    """An audit event: who changed what, when, why and on what evidence. A database trigger refuses to change rows."""

    project = models.ForeignKey("accounts.Project", models.PROTECT, null=True, blank=True, related_name="audit_events")
    sequence = models.PositiveBigIntegerField()
    at = models.DateTimeField()
    tag = models.CharField(max_length=60)
    actor = models.ForeignKey(settings.AUTH_USER_MODEL, models.PROTECT, null=True, blank=True, related_name="+")
    actor_name = models.CharField(max_length=200)
    auth_method = models.CharField(max_length=20)
    token_id = models.CharField(max_length=12, blank=True)
    object_type = models.CharField(max_length=60)
    object_id = models.CharField(max_length=60)
    object_name = models.CharField(max_length=200)
    before = models.JSONField(null=True, blank=True)
    after = models.JSONField(null=True, blank=True)
    reason = models.TextField(blank=True)
    evidence = models.JSONField(null=True, blank=True)
    request_id = models.CharField(max_length=64, blank=True)
    canonical = models.BinaryField()
    prev_hash = models.BinaryField(max_length=32)
    hash = models.BinaryField(max_length=32)

    objects = AuditEventQuerySet.as_manager()

    class Meta:
        ordering = ["-id"]
        constraints = [
            models.UniqueConstraint(fields=["project", "sequence"], name="one_event_per_sequence", nulls_distinct=False)
        ]
        indexes = [models.Index(fields=["object_type", "object_id"], name="audit_by_object")]

    def __str__(self) -> str:
        return f"{self.tag} {self.object_name}"

    @classmethod
    def record(
        cls,
        tag: Tag,
        subject: models.Model,
        *,
        by: Actor,
        project: Tenant | None,
        before: JsonObject | None = None,
        after: JsonObject | None = None,
        reason: str = "",
        evidence: JsonObject | None = None,
    ) -> AuditEvent:
        """Append an event about `subject` to the project's chain and return it; None is the installation's chain.

        Texts and JSON that are too large are shortened. Call it last in the transaction of the change: it holds the
        chain's lock until the commit. Raises TransactionManagementError outside of a transaction.
        """
        if not connection.in_atomic_block:
            raise transaction.TransactionManagementError(
                "An audit event must be recorded in the transaction of its change."
            )
        event = cls(
            project=row_of(project),
            at=now(),
            tag=tag,
            actor=by.user,
            actor_name=by.name,
            auth_method=by.method,
            token_id=by.token_id,
            request_id=by.request_id,
            object_type=cast(str, subject._meta.model_name),
            object_id=str(subject.pk),
            object_name=str(subject)[:200],
            before=shortened(before),
            after=shortened(after),
            reason=shortened_text(reason),
            evidence=shortened(evidence),
        )
        event.append()
        return event

    def append(self) -> None:
        """Insert this event as the next one of its chain, in one call of the database; set its sequence and hashes.

        Locks the chain until the commit.
        """
        columns = [
            self.project_id,
            self.at,
            str(self.tag),
            self.actor_id,
            self.actor_name,
            self.auth_method,
            self.token_id,
            self.object_type,
            self.object_id,
            self.object_name,
            as_json(self.before),
            as_json(self.after),
            self.reason,
            as_json(self.evidence),
            self.request_id,
        ]
        with connection.cursor() as cursor:
            cursor.execute(APPEND, [chain.DOMAIN, *self.around_sequence(), *columns])
            self.pk, self.sequence, self.canonical, self.prev_hash, self.hash = cursor.fetchone()
        self._state.adding, self._state.db = False, connection.alias

    def around_sequence(self) -> tuple[bytes, bytes]:
        """Return the event's canonical JSON in two parts, before and after the sequence, which only the database knows.

        Sets the event's sequence to 0. The keys are sorted, so the sequence is the last but one, and a string before it
        would have its quotes escaped.
        """
        self.sequence = 0
        before, place, after = rfc8785.dumps(self.content()).rpartition(b',"sequence":0,"tag":')
        return before + place[: len(b',"sequence":')], place[len(b',"sequence":0') :] + after

    def follow(self, sequence: int, head: bytes) -> None:
        """Set sequence, canonical bytes and hashes of the event after the one with this sequence and hash (32 bytes).

        Saves nothing.
        """
        self.sequence, self.prev_hash = sequence + 1, head
        self.canonical = rfc8785.dumps(self.content())
        self.hash = chain.link_hash(self.prev_hash, self.canonical)

    def content(self) -> JsonObject:
        """Return the content that is hashed: every field but the hashes themselves."""
        return {
            "project": self.project.slug if self.project else None,
            "sequence": self.sequence,
            "at": self.at.isoformat(),
            "tag": str(self.tag),
            "actor": {"id": self.actor_id, "name": self.actor_name, "method": self.auth_method, "token": self.token_id},
            "object": {"type": self.object_type, "id": self.object_id, "name": self.object_name},
            "before": self.before,
            "after": self.after,
            "reason": self.reason,
            "evidence": self.evidence,
            "request_id": self.request_id,
        }

    @property
    def changes(self) -> list[JsonObject]:
        """Return the changed fields, sorted by name, with their values `before` and `after`.

        `had` and `has` say whether the field existed before and after; a missing value is None.
        """
        before, after = self.before or {}, self.after or {}
        return [
            {
                "field": name,
                "before": before.get(name),
                "after": after.get(name),
                "had": name in before,
                "has": name in after,
            }
            for name in sorted({*before, *after})
            if name not in before or name not in after or before[name] != after[name]
        ]

    @property
    def sentence(self) -> str:
        """Return the event in plain words: who did what to which object."""
        return sentence(self.tag, self.actor_name, self.object_name)

    @property
    def raw(self) -> str:
        """Return the content that is hashed, as indented JSON."""
        return json.dumps(json.loads(bytes(self.canonical)), indent=2, ensure_ascii=False)

    @property
    def hash_hex(self) -> str:
        """Return the event's hash in hexadecimal."""
        return bytes(self.hash).hex()

    @property
    def prev_hash_hex(self) -> str:
        """Return the hash of the event before it in hexadecimal."""
        return bytes(self.prev_hash).hex()

    def as_link(self) -> chain.Link:
        """Return the stored bytes as a link in the verifier's form."""
        return chain.Link(self.sequence, bytes(self.canonical), bytes(self.prev_hash), bytes(self.hash))


class Checkpoint(models.Model):
    """A signed head of a chain, also stored in the artifact store and the log. A database trigger protects the rows."""

    project = models.ForeignKey("accounts.Project", models.PROTECT, null=True, blank=True, related_name="checkpoints")
    sequence = models.PositiveBigIntegerField()
    at = models.DateTimeField()
    document = models.BinaryField()

    class Meta:
        ordering = ["id"]

    def __str__(self) -> str:
        return self.path

    @property
    def path(self) -> str:
        """Return the checkpoint's path below `checkpoints/` of the artifact store."""
        return f"{chain_name(self.project)}/{self.at:%Y%m%dT%H%M%S.%f}Z-{self.sequence}.json"

    def as_signed(self) -> chain.Checkpoint:
        """Return the signed content as the verifier's Checkpoint; the signature is not verified."""
        return chain.checkpoint_of(json.loads(bytes(self.document))["signed"].encode())


class Receipt(models.Model):
    """The receipt of a witness that took a checkpoint. A database trigger protects the rows.

    `content` is a time-stamp token, or empty for a witness that keeps the checkpoint itself.
    """

    checkpoint = models.ForeignKey(Checkpoint, models.PROTECT, related_name="receipts")
    witness = models.CharField(max_length=200)
    at = models.DateTimeField(default=now)
    content = models.BinaryField(help_text="a time-stamp token; empty for a witness that keeps the checkpoint itself")

    class Meta:
        constraints = [models.UniqueConstraint(fields=["checkpoint", "witness"], name="one_receipt_of_a_witness")]

    def __str__(self) -> str:
        return f"{self.witness} {self.checkpoint_id}"


class Follower(models.Model):
    """The progress of the SIEM in a chain: the `sequence` of the last event that it took, 0 for none."""

    project = models.OneToOneField("accounts.Project", models.PROTECT, null=True, blank=True, related_name="+")
    sequence = models.PositiveBigIntegerField(default=0)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["project"], name="one_follower_of_a_chain", nulls_distinct=False)
        ]

    def __str__(self) -> str:
        return f"{chain_name(self.project)} {self.sequence}"


class UnsealedEvent(models.Model):
    """A read or a refusal that is not in the chain yet: written without the chain's lock, and sealed in batches."""

    project = models.ForeignKey("accounts.Project", models.PROTECT, null=True, blank=True, related_name="+")
    at = models.DateTimeField(default=now)
    fields = models.JSONField()

    class Meta:
        ordering = ["id"]

    def __str__(self) -> str:
        return f"{self.fields.get('tag')} {self.at}"


def chain_name(project: Tenant | None) -> str:
    """Return the name of a chain in paths and reports: the project's slug, or `installation`."""
    return project.slug if project else "installation"


def lock_chain(project: Tenant | None) -> None:
    """Lock the chain until the end of the transaction, so that the sequence is the order of commits."""
    chain_id = project.pk if project else 0
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(hashtext('adapterhub.audit'), %s)", [chain_id])


def as_json(content: JsonObject | None) -> str | None:
    """Return the content as JSON text; None stays None."""
    return None if content is None else json.dumps(content)


def head_of(project: Tenant | None) -> tuple[int, bytes]:
    """Return the last sequence of a chain and its hash; (0, 32 zero bytes) when it is empty."""
    rows = AuditEvent.objects.filter(project=row_of(project)).order_by("-sequence").values_list("sequence", "hash")
    last = rows.first()
    return (last[0], bytes(last[1])) if last else (0, chain.GENESIS)


def verify(project: Tenant | None, outside: Iterable[chain.Checkpoint] = ()) -> tuple[int, list[chain.Fault]]:
    """Verify a project's chain against the database's checkpoints and those of `outside`; None is the installation's.

    Returns the number of events and the faults, by sequence. A column that differs from the hashed bytes counts as
    edited.
    """
    edited: list[chain.Fault] = []
    moments: list[chain.Moment] = []

    def links() -> Iterator[chain.Link]:
        for event in AuditEvent.objects.of_chain(project).select_related("project").in_parts():
            if rfc8785.dumps(event.content()) != bytes(event.canonical):
                edited.append(chain.Fault(event.sequence, "edited"))
            moments.append(chain.Moment(event.sequence, event.at, event.object_type == chain.SEALED_LATER))
            yield event.as_link()

    points = [*(point.as_signed() for point in Checkpoint.objects.filter(project=row_of(project))), *outside]
    chain_faults = list(chain.faults(links(), points))
    faults = {*chain_faults, *edited, *chain.time_faults(moments, points, now())}
    return len(moments), sorted(faults, key=lambda fault: fault.sequence)
