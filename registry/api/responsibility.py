"""Serializers of who is responsible for what an alias served at a time."""

from __future__ import annotations

from typing import Any

from rest_framework import serializers

from registry.api.verdicts import DecisionSerializer
from registry.evidence.responsibility import Responsibility, Trial
from registry.models import Approval, Signature


class StandingSignatureSerializer(serializers.ModelSerializer[Signature]):
    """One person's signature on an approval."""

    class Meta:
        model = Signature
        fields = ["name", "decision", "meaning", "reason", "at"]


class ApprovalBehindSerializer(serializers.ModelSerializer[Approval]):
    """An approval that was requested for the rollout, with its signatures."""

    signatures = StandingSignatureSerializer(many=True)

    class Meta:
        model = Approval
        fields = ["id", "status", "author_name", "reason", "bound", "created_at", "signatures"]


class TrialSerializer(serializers.Serializer[Trial]):
    """The rollout that served its candidate to some of the users at that time; `percent` is their share."""

    rollout = serializers.UUIDField(source="rollout.pk")
    candidate = serializers.CharField(source="rollout.candidate.served_name")
    percent = serializers.FloatField()


class ResponsibilitySerializer(serializers.Serializer[Responsibility]):
    """The version that an alias served at a time, and who requested, decided and signed that, on which verdicts."""

    version = serializers.CharField(source="version.served_name")
    digest = serializers.CharField(source="version.digest")
    since = serializers.DateTimeField()
    until = serializers.DateTimeField(allow_null=True)
    how = serializers.CharField()
    asked_by = serializers.CharField()
    decided_by = serializers.CharField()
    reason = serializers.CharField()
    audit_sequence = serializers.SerializerMethodField(help_text="Place of the decision in the project's audit trail.")
    rollout = serializers.SerializerMethodField(help_text="Null for a move without a rollout.")
    decision = DecisionSerializer(allow_null=True)
    approvals = ApprovalBehindSerializer(many=True)
    trial = TrialSerializer(allow_null=True)

    def get_audit_sequence(self, answer: Responsibility) -> int | None:
        """Return the sequence number of the audit event in the project's trail; None without an event."""
        return answer.event.sequence if answer.event else None

    def get_rollout(self, answer: Responsibility) -> str | None:
        """Return the id of the rollout that moved the alias; None for a move without one."""
        return str(answer.rollout.pk) if answer.rollout else None


def as_json(answer: Responsibility) -> Any:
    """Return the answer as a dict for JSON."""
    return ResponsibilitySerializer(answer).data
