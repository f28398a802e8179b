"""Serializers of a rollout's verdicts and of the decisions that froze them."""

from __future__ import annotations

from typing import Any

from rest_framework import serializers

from registry.api.rollout_plan import KINDS
from registry.experiments.confidence_sequences import Verdict
from registry.experiments.guardrails import Action
from registry.experiments.metrics import METRICS
from registry.models import RolloutDecision


class ArmSerializer(serializers.Serializer[Any]):
    """One arm's users and value in one metric."""

    users = serializers.IntegerField(help_text="Users who count, each once.")
    value = serializers.FloatField(
        allow_null=True, help_text="Mean, rate (0.05 is 5 points) or quantile, in the metric's own unit."
    )


class DifferenceSerializer(serializers.Serializer[Any]):
    """The candidate's value less the control's in the metric's own unit, with its interval; null is an open end.

    A higher difference is worse for the candidate.
    """

    lower = serializers.FloatField(allow_null=True)
    estimate = serializers.FloatField(allow_null=True)
    upper = serializers.FloatField(allow_null=True)


class VerdictFindingSerializer(serializers.Serializer[Any]):
    """One guardrail's verdict with its numbers."""

    metric = serializers.ChoiceField(choices=list(METRICS))
    name = serializers.CharField()
    kind = serializers.ChoiceField(choices=KINDS)
    margin = serializers.FloatField()
    unit = serializers.CharField()
    verdict = serializers.ChoiceField(choices=[verdict.value for verdict in Verdict])
    has_enough = serializers.BooleanField(help_text="False while the interval has an open end for want of users.")
    control = ArmSerializer()
    candidate = ArmSerializer()
    users_needed = serializers.IntegerField(help_text="Users of each arm from which on the interval has two ends.")
    difference = DifferenceSerializer()
    reason = serializers.CharField()


class VerdictsSerializer(serializers.Serializer[Any]):
    """A rollout's analysis at one time."""

    action = serializers.ChoiceField(choices=[action.value for action in Action])
    reasons = serializers.ListField(child=serializers.CharField())
    step = serializers.IntegerField(required=False, help_text="Counted from 0.")
    weight = serializers.FloatField(required=False)
    findings = VerdictFindingSerializer(many=True)
    judged_at = serializers.DateTimeField(required=False, help_text="The time of the numbers.")
    unmet = serializers.ListField(
        child=serializers.CharField(), help_text="Conditions that were not met: what a promotion by hand overrides."
    )


class DecisionSerializer(serializers.ModelSerializer[RolloutDecision]):
    """A decision on a rollout: when, what, by whom, why, and on which verdicts."""

    by = serializers.CharField(source="actor_name")
    verdicts = VerdictsSerializer()

    class Meta:
        model = RolloutDecision
        fields = ["at", "outcome", "by", "reason", "verdicts"]
