"""REST: responses, each with the version that answered."""

from __future__ import annotations

from rest_framework import serializers

from adapterhub.api.views import ProjectViewSet, Retrieving
from registry.api.fields import slug_of
from registry.evidence.lineage import approvals_of
from registry.models import Response


class ResponseSerializer(serializers.ModelSerializer[Response]):
    """A response to a request: the version and arm that gave it, when, and the approvals.

    The approvals are all that were requested for the version on the alias, whatever their status.
    """

    version = slug_of("served_name")
    digest = serializers.CharField(source="version.digest")
    alias = serializers.CharField(source="alias_name")
    approvals = serializers.SerializerMethodField(help_text="The approvals of the version on this alias.")

    class Meta:
        model = Response
        fields = [
            "id",
            "version",
            "digest",
            "arm",
            "alias",
            "at",
            "status",
            "total_ms",
            "completion_tokens",
            "approvals",
        ]

    def get_approvals(self, response: Response) -> list[str]:
        """Return the ids of the approvals that were requested for the version on this alias."""
        return [str(approval.pk) for approval in approvals_of(response.version, response.alias_name)]


class ResponseViewSet(ProjectViewSet, Retrieving):
    """Responses to requests, each with the version that answered."""

    queryset = Response.objects.select_related("project", "version")
    serializer_class = ResponseSerializer
