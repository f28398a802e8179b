"""REST: the check of a declaration, the content of a file adapterhub.yaml."""

from __future__ import annotations

from functools import partial
from typing import Any

from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from adapterhub.accounts.api import LimitsSerializer
from adapterhub.api.permissions import actor_of, named_project, scopes_in
from adapterhub.api.views import ProjectViewSet
from adapterhub.core.tenancy import Scope
from registry.api.aliases import cluster_for
from registry.api.fields import reference
from registry.api.rollout_plan import GuardrailSerializer, StepSerializer
from registry.models import Cluster
from registry.replica_sources.address import require_source
from training.api.run_fields import MixedSerializer
from training.api.serializers import BudgetSerializer
from training.models import Dataset, TrainingRun
from training.planning.declaration_check import DeclarationCheck


class DeclaredAdapterSerializer(serializers.Serializer[Any]):
    """The adapter that should exist."""

    slug = serializers.SlugField(max_length=50)
    description = serializers.CharField(required=False, allow_blank=True, default="", max_length=10_000)
    tags = serializers.ListField(child=serializers.CharField(max_length=50), required=False, default=list)


class TaskGateSerializer(serializers.Serializer[Any]):
    """A task of lm-eval, and the least score of each named metric."""

    task = serializers.CharField(max_length=100)
    at_least = serializers.DictField(child=serializers.FloatField(), allow_empty=False)


class GatesSerializer(serializers.Serializer[Any]):
    """The gates that a version must pass before it serves users."""

    no_worse = serializers.BooleanField(required=False, default=True)
    tasks = TaskGateSerializer(many=True, required=False, default=list)
    loss_below = serializers.FloatField(required=False, allow_null=True)
    quorum = serializers.IntegerField(required=False, allow_null=True, min_value=0, max_value=10)


class DeclaredRolloutSerializer(serializers.Serializer[Any]):
    """The rollout that moves an alias to the version. `cluster` is for an alias that does not exist yet."""

    alias = serializers.SlugField(max_length=50)
    cluster = reference(required=False, allow_null=True, default=None)
    steps = StepSerializer(many=True, allow_empty=False)
    guardrails = GuardrailSerializer(many=True, required=False, default=list)
    reason = serializers.CharField(max_length=2000)


class DeclaredClusterSerializer(serializers.ModelSerializer[Cluster]):
    """The declared cluster: its engine, the limits on adapters, its routing, and the source of its replicas."""

    class Meta:
        model = Cluster
        fields = ["slug", "engine", "max_lora_rank", "max_loras", "routing", "discovery"]

    def validate_discovery(self, address: str) -> str:
        """Return the address unchanged. Raises Invalid unless it is that of a source of replicas, or empty."""
        require_source(address)
        return address


class DeclarationSerializer(serializers.Serializer[Any]):
    """A declaration, with the records that the caller has already identified for it."""

    project = serializers.SlugField()
    adapter = DeclaredAdapterSerializer()
    base = serializers.CharField(max_length=100, help_text="Slug of the base model.")
    dataset = serializers.IntegerField(allow_null=True, default=None, help_text="null: a file that is to be uploaded.")
    columns = serializers.ListField(
        child=serializers.CharField(max_length=200), default=list, help_text="Of that file, from datasets/check/."
    )
    version = serializers.CharField(
        allow_null=True, default=None, max_length=200, help_text="Served name of the version that the recipe has made."
    )
    method = serializers.ChoiceField(TrainingRun.Method.choices, default=TrainingRun.Method.LORA)
    budget = BudgetSerializer(allow_null=True, default=None)
    hyperparameters = serializers.DictField(default=dict)
    mixture = MixedSerializer(many=True, required=False, default=list)
    validation_dataset = serializers.IntegerField(allow_null=True, default=None)
    gates = GatesSerializer(allow_null=True, default=None)
    limits = LimitsSerializer(allow_null=True, default=None)
    cluster = DeclaredClusterSerializer(allow_null=True, default=None)
    rollout = DeclaredRolloutSerializer(allow_null=True, default=None)


class RefusalSerializer(serializers.Serializer[Any]):
    """An error that carrying out the declaration would meet."""

    field = serializers.CharField(help_text="The field of the file, such as rollout.guardrails.")
    code = serializers.CharField()
    message = serializers.CharField()
    status = serializers.IntegerField(help_text="The status of the answer that it would get.")


class PlanSerializer(serializers.Serializer[Any]):
    """The result of checking a declaration: the errors that it would meet, and the training's hyperparameters.

    `scopes` are those of the caller in the project.
    """

    refusals = RefusalSerializer(many=True)
    hyperparameters = serializers.DictField(
        allow_null=True, help_text="All that the training would have; null if none is needed, or if they are bad."
    )
    scopes = serializers.ListField(child=serializers.CharField(), help_text="Those of the caller in the project.")


class PlanViewSet(ProjectViewSet):
    """Checks of declarations. Nothing is created or changed."""

    queryset = Dataset.objects.all()
    serializer_class = PlanSerializer
    scopes = {"create": Scope.READ}

    @extend_schema(request=DeclarationSerializer, responses={200: PlanSerializer})
    def create(self, request: Request) -> Response:
        """Check a declaration and return every error that carrying it out would meet. Nothing is changed."""
        declared = self.read(DeclarationSerializer)
        project = named_project(request, declared["project"], Scope.READ)
        check = DeclarationCheck(
            project, declared, by=actor_of(request), cluster_of=partial(cluster_for, request, project)
        )
        return Response({**check.run(), "scopes": sorted(scopes_in(request, project))})
