"""REST endpoints of the memory estimate and the method advice; neither stores anything."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from adapterhub.api.permissions import projects_with
from adapterhub.api.views import ProjectViewSet
from adapterhub.core.errors import Invalid
from adapterhub.core.tenancy import Scope
from registry.models import BaseModel
from training.models import Dataset, TrainingRun
from training.models.hyperparameters import with_defaults
from training.planning import estimator_inputs
from training.planning.memory_estimator import GB, Shape, largest_batch


class EstimateRequest(serializers.Serializer[Any]):
    """A base model or a configuration, with the hyperparameters and the device to estimate for."""

    base_model = serializers.CharField(
        required=False, help_text="A registered base model, or llama-2-7b, llama-3.1-8b, llama-3.1-70b."
    )
    config = serializers.DictField(
        required=False, help_text="Instead of base_model: a transformers configuration (config.json)."
    )
    hyperparameters = serializers.DictField(required=False, default=dict)
    device_gb = serializers.FloatField(
        required=False, min_value=0.1, max_value=10_000, help_text="10^9 bytes; without it, the largest known device."
    )


class AdviceRequest(EstimateRequest):
    """The inputs of a recommendation: those of an estimate, a dataset, and what matters in use."""

    dataset = serializers.IntegerField(
        required=False, help_text="Its rows and tokens are counted; the domain shift comes from a rank analysis."
    )
    many_adapters = serializers.BooleanField(
        default=True, help_text="It will be served beside other adapters on one base model."
    )
    keeps_general_skill = serializers.BooleanField(default=True)
    least_latency = serializers.BooleanField(default=False)


class EstimateViewSet(ProjectViewSet):
    """Estimates of the memory of every method, from a model's configuration alone."""

    queryset = BaseModel.objects.ready()
    scopes = {"create": Scope.READ}

    @extend_schema(request=EstimateRequest, responses={200: OpenApiTypes.OBJECT})
    def create(self, request: Request) -> Response:
        """Estimate each method's bytes on a device, part by part, whether they fit, and the largest batch that does."""
        fields = self.read(EstimateRequest)
        shape, (plan, device_bytes) = requested_shape(fields), requested_plan(fields)
        estimates = estimator_inputs.estimates(shape, plan, device_bytes)
        for row in estimates:
            chosen = replace(plan, method=row["method"])
            row["largest_batch"] = largest_batch(shape, chosen, device_bytes) if device_bytes else None
        counts = {"parameters": shape.parameters, "adapter_parameters": shape.adapter_parameters(plan.rank)}
        return Response({**counts, "device_bytes": device_bytes, "methods": estimates})


class AdviceViewSet(ProjectViewSet):
    """Advice on methods: a ranking, with the reasons for each method."""

    queryset = Dataset.objects.select_related("project")
    scopes = {"create": Scope.READ}

    @extend_schema(request=AdviceRequest, responses={200: OpenApiTypes.OBJECT})
    def create(self, request: Request) -> Response:
        """Rank every method with its points and reasons, and name the input that would change the order."""
        fields = self.read(AdviceRequest)
        dataset = seen_dataset(request, fields.get("dataset"))
        shape, (plan, device_bytes) = requested_shape(fields), requested_plan(fields)
        model = BaseModel.objects.ready().filter(slug=fields.get("base_model")).first()
        stated = {name: fields[name] for name in ("many_adapters", "keeps_general_skill", "least_latency")}
        return Response(
            estimator_inputs.advice(estimator_inputs.situation(shape, plan, device_bytes, dataset, model, **stated))
        )


def requested_shape(fields: dict[str, Any]) -> Shape:
    """Return the shape of the named base model or of the given configuration.

    Raises Invalid unless exactly one of them is given.
    """
    if ("base_model" in fields) == ("config" in fields):
        raise Invalid("Name a base_model, or give a config, not both.", field="base_model", code="one_of_two")
    return (
        estimator_inputs.shape_of(fields["config"], "config")
        if "config" in fields
        else estimator_inputs.named_shape(fields["base_model"])
    )


def requested_plan(fields: dict[str, Any]) -> tuple[Any, float | None]:
    """Return the plan of a LoRA training with the request's hyperparameters, and the device's memory in bytes.

    The memory is `device_gb`, else that of the largest known device, else None. The plan is one for a GPU unless that
    device is a CPU.
    """
    device = None if "device_gb" in fields else estimator_inputs.largest_device()
    on_gpu = device is None or device.kind == device.Kind.CUDA
    plan = estimator_inputs.plan_of(TrainingRun.Method.LORA, with_defaults(fields["hyperparameters"]), on_gpu=on_gpu)
    return plan, device.memory_bytes if device else fields.get("device_gb", 0) * GB or None


def seen_dataset(request: Request, pk: int | None) -> Dataset | None:
    """Return the dataset with this key; None without a key. Raises Invalid unless the caller may read it."""
    if pk is None:
        return None
    dataset = Dataset.objects.filter(project__in=projects_with(request, Scope.READ), pk=pk).first()
    if dataset is None:
        raise Invalid(f"There is no dataset {pk}, or you cannot see it.", field="dataset", code="unknown_dataset")
    return dataset
