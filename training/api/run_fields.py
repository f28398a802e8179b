"""Fields of a training run's request: its hyperparameters, and the datasets that it mixes in."""

from __future__ import annotations

from typing import Any

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from training.models import hyperparameters


class MixedSerializer(serializers.Serializer[Any]):
    """A dataset that a run mixes in, and its weight; the run's own dataset has the weight 1."""

    dataset = serializers.IntegerField()
    weight = serializers.FloatField(min_value=1e-6, max_value=1000)


@extend_schema_field(hyperparameters.schema())
class HyperparametersField(serializers.DictField):
    """Hyperparameters by name; `training.models.hyperparameters` checks them."""
