"""REST: evidence about a version: engine verdicts, lineage, comparison with another version, and dossiers."""

from __future__ import annotations

from typing import Any

from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from adapterhub.api.permissions import actor_of
from adapterhub.api.views import ProjectViewSet
from adapterhub.core.tenancy import Scope
from registry.evidence.comparison import compare, other_version
from registry.evidence.dossier import dossier
from registry.evidence.lineage import lineage
from registry.models import AdapterVersion, Dossier, ServedComparison

SCOPES = {
    "compatibility": Scope.READ,
    "lineage": Scope.READ,
    "compare": Scope.READ,
    "dossier": Scope.READ,
    "freeze": Scope.PUBLISH,
    "dossiers": Scope.READ,
    "served_comparisons": Scope.READ,
}


class EngineVerdictSerializer(serializers.Serializer[Any]):
    """The verdict on whether an engine can serve a version, with the reason."""

    engine = serializers.CharField()
    outcome = serializers.CharField(help_text="serves, serves_after_export or cannot")
    reason = serializers.CharField()


class ServedComparisonSerializer(serializers.ModelSerializer[ServedComparison]):
    """The comparison of an engine's numbers for a version with PEFT's: verdict, reason, and how far they are apart."""

    class Meta:
        model = ServedComparison
        fields = ["engine_version", "verdict", "reason", "tokens", "effect", "difference", "details", "created_at"]


class DossierSerializer(serializers.ModelSerializer[Dossier]):
    """A frozen dossier with its digest and signature."""

    version = serializers.SlugRelatedField[AdapterVersion](slug_field="served_name", read_only=True)

    class Meta:
        model = Dossier
        fields = ["id", "version", "digest", "signature", "created_at", "content"]


class VersionEvidence(ProjectViewSet):
    """Actions on a version that return the evidence about it, and freeze its dossier."""

    @extend_schema(responses=EngineVerdictSerializer(many=True))
    @action(detail=True, pagination_class=None)
    def compatibility(self, request: Request, slug: str, number: str) -> Response:
        """List each engine's verdict: it serves, serves after the portable export, or cannot, and why."""
        return Response(EngineVerdictSerializer(self.get_object().verdicts(), many=True).data)

    @extend_schema(responses=OpenApiTypes.OBJECT)
    @action(detail=True)
    def lineage(self, request: Request, slug: str, number: str) -> Response:
        """Return the version's lineage: the graph from dataset and analysis to approvals, rollouts and answers."""
        return Response(lineage(self.get_object()))

    @extend_schema(
        parameters=[OpenApiParameter("to", int, required=True, description="Number of the other version.")],
        responses=OpenApiTypes.OBJECT,
    )
    @action(detail=True)
    def compare(self, request: Request, slug: str, number: str) -> Response:
        """Compare the version with another version of the adapter.

        The response compares configuration, ranks, metrics and size, and has the cosine distance of the updates of
        every module.
        """
        version = self.get_object()
        return Response(compare(version, other_version(version, request.query_params.get("to", ""))))

    @extend_schema(responses=OpenApiTypes.OBJECT)
    @action(detail=True)
    def dossier(self, request: Request, slug: str, number: str) -> Response:
        """Return the technical dossier of the version as of now."""
        return Response(dossier(self.get_object()))

    @extend_schema(request=None, responses={201: DossierSerializer})
    @dossier.mapping.post
    def freeze(self, request: Request, slug: str, number: str) -> Response:
        """Store a signed copy of the version's dossier as it is now, and return it."""
        version = self.get_object()
        frozen = Dossier.freeze(version, dossier(version), by=actor_of(request))
        return Response(DossierSerializer(frozen).data, 201)

    @extend_schema(responses=DossierSerializer(many=True))
    @action(detail=True, pagination_class=None)
    def dossiers(self, request: Request, slug: str, number: str) -> Response:
        """List the frozen dossiers of the version, newest first."""
        return Response(DossierSerializer(self.get_object().dossiers.select_related("version"), many=True).data)

    @extend_schema(responses=ServedComparisonSerializer(many=True))
    @action(detail=True, pagination_class=None, url_path="served-comparisons")
    def served_comparisons(self, request: Request, slug: str, number: str) -> Response:
        """List what engines computed with the version after its first load, compared with PEFT; newest first."""
        return Response(ServedComparisonSerializer(self.get_object().served_comparisons.all(), many=True).data)
