"""Serializers of a rollout's plan: steps, guardrails, checks of answers, and targeting."""

from __future__ import annotations

from typing import Any

from rest_framework import serializers

from adapterhub.api.parsers import BoundedJSONField
from registry.experiments.guardrails import Kind
from registry.experiments.metrics import METRICS


class StepSerializer(serializers.Serializer[Any]):
    """A step of a rollout: the candidate's weight in percent, and what must have happened before the next step."""

    weight = serializers.FloatField(min_value=0, max_value=100)
    hold_s = serializers.IntegerField(min_value=0, required=False, default=0)
    min_samples = serializers.IntegerField(
        min_value=0, required=False, default=0, help_text="Users that each arm must have served since the start."
    )
    approval = serializers.BooleanField(required=False, default=False)
    shadow = serializers.FloatField(
        min_value=0,
        max_value=100,
        required=False,
        default=0,
        help_text="Percent of the requests that the candidate answers too, without anyone seeing it; only at weight 0.",
    )


KINDS = [kind.value for kind in Kind]


class GuardrailSerializer(serializers.Serializer[Any]):
    """A metric that a rollout watches, and the margin by which the candidate may be worse."""

    metric = serializers.ChoiceField(choices=list(METRICS))
    margin = serializers.FloatField(min_value=0, help_text="In the metric's unit: percentage points, or seconds.")
    kind = serializers.ChoiceField(
        choices=KINDS,
        default=Kind.GUARDRAIL.value,
        help_text="A bad guardrail rolls back, a bad signal pauses, goals decide promotion.",
    )
    level = serializers.FloatField(
        required=False, allow_null=True, help_text="0.95 is p95; only for metrics in seconds."
    )


class JudgeSerializer(serializers.Serializer[Any]):
    """Settings of the judge, a model that scores a sample of both arms' answers with their questions."""

    instruction = serializers.CharField(max_length=2000, help_text="What makes an answer good.")
    sample = serializers.FloatField(min_value=0.01, max_value=100, help_text="Percent of the answers.")


class ChecksSerializer(serializers.Serializer[Any]):
    """Checks of an answer, which the router makes after it has sent the answer."""

    refusal = serializers.CharField(required=False, help_text="Regular expression that a refusal contains.")
    format = serializers.CharField(required=False, help_text="Regular expression that a correct answer contains.")
    schema = BoundedJSONField(required=False, help_text="JSON Schema that the JSON of a correct answer follows.")
    judge = JudgeSerializer(required=False)


class TargetingSerializer(serializers.Serializer[Any]):
    """The users or sessions that a rollout includes or excludes, named as clients send them; only hashes are stored."""

    allow = serializers.ListField(child=serializers.CharField(max_length=500), required=False, default=list)
    deny = serializers.ListField(child=serializers.CharField(max_length=500), required=False, default=list)
    holdout = serializers.FloatField(
        min_value=0,
        max_value=50,
        required=False,
        default=0,
        help_text="Percent of the units that no rollout of this alias touches.",
    )
