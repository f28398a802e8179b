"""REST resources of compressions."""

from __future__ import annotations

from typing import Any

from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from adapterhub.api.pagination import ByCreation
from adapterhub.api.permissions import actor_of, seen_in
from adapterhub.api.views import ProjectViewSet
from adapterhub.core.references import named
from adapterhub.core.tenancy import Scope
from registry.models import Adapter, AdapterVersion
from training.api.serializers import BudgetSerializer, JobSerializer
from training.api.views import OF_JOBS, Cancelling
from training.models import Compression, Dataset
from training.runs.specification import of_project


class CompressionSerializer(JobSerializer):
    """A compression: its budget, the version that it made, and the loss before and after."""

    source = serializers.SlugRelatedField[AdapterVersion](  # type: ignore[assignment]  # DRF takes it off the class
        slug_field="served_name", read_only=True
    )
    version = serializers.SlugRelatedField[AdapterVersion](slug_field="served_name", read_only=True, allow_null=True)

    class Meta(JobSerializer.Meta):
        model = Compression
        fields = [
            *JobSerializer.Meta.fields,
            *("source", "budget", "keeps_merged", "version", "loss_before", "loss_after"),
        ]


class CompressionBudgetSerializer(BudgetSerializer):
    """The budget of a compression: exactly one of the four fields."""

    max_rank = serializers.IntegerField(
        min_value=1,
        max_value=512,
        required=False,
        help_text="The highest rank of a module. The only budget of a version that engines cannot serve.",
    )


class NewCompressionSerializer(serializers.Serializer[Any]):
    """The compression to queue: the budget, and the dataset on which the loss is measured."""

    budget = CompressionBudgetSerializer()
    dataset = serializers.IntegerField(
        required=False,
        allow_null=True,
        help_text="The dataset to measure the loss on; by default the version's own. A reduction to `max_rank` is else "
        "measured on a general text that comes with the product.",
    )
    keeps_merged = serializers.BooleanField(
        default=False,
        help_text="With `max_rank`: store the base model with the whole adapter merged into it, too. "
        "`POST base-models/` with the new version registers that.",
    )


class CompressionViewSet(Cancelling):
    """Compressions: jobs that make a stored version smaller after its training."""

    queryset = Compression.objects.select_related("project", "base_model", "source", "version")
    serializer_class = CompressionSerializer
    pagination_class = ByCreation
    filters = {**OF_JOBS, "source": "source__served_name"}
    scopes = {"cancel": Scope.TRAIN}


class VersionCompressionViewSet(ProjectViewSet):
    """The action on a version that makes it smaller."""

    queryset = AdapterVersion.objects.select_related("adapter__project", "adapter__base_model")
    serializer_class = CompressionSerializer
    project_path = "adapter__project"
    lookup_field = "number"
    lookup_value_regex = r"\d{1,9}"
    scopes = {"compress": Scope.TRAIN}

    def get_queryset(self) -> Any:
        """Return the versions of the adapter in the URL that the caller sees."""
        rows = super().get_queryset()
        adapters = seen_in(Adapter.objects.all(), "project", self.request)
        return rows.filter(adapter=named(adapters, "project", "slug", self.kwargs.get("slug", "")))

    @extend_schema(request=NewCompressionSerializer, responses={202: CompressionSerializer})
    @action(detail=True, methods=["post"])
    def compress(self, request: Request, slug: str, number: str) -> Response:
        """Queue a compression of the version.

        Its updates are cut to their leading directions, and the result is a new version of the adapter.
        """
        version = self.get_object()
        fields = self.read(NewCompressionSerializer)
        pk = fields.get("dataset")
        dataset = pk and of_project(Dataset, version.project, "dataset", pk=pk)
        compression = Compression.launch(
            version,
            dict(fields["budget"]),
            dataset=dataset,
            keeps_merged=fields["keeps_merged"],
            by=actor_of(request),
        )
        return self.write(compression, 202)
