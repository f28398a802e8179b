"""REST: open alarms of replicas, for monitoring."""

from __future__ import annotations

from typing import Any

from drf_spectacular.utils import extend_schema, extend_schema_serializer
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from adapterhub.api.views import ProjectViewSet
from registry.models import Replica
from registry.serving.open_alarms import open_alarms


class AlarmSerializer(serializers.Serializer[Any]):
    """An alarm of a cluster: its kind, what it is about, and how to remedy it."""

    kind = serializers.ChoiceField(
        choices=["discovery_stalled", "foreign_versions", "load_refused", "replica_unreachable"]
    )
    cluster = serializers.CharField()
    subject = serializers.CharField(help_text="A served name, or a replica's address.")
    text = serializers.CharField()
    remedy = serializers.CharField()


@extend_schema_serializer(many=False)
class AlarmPageSerializer(serializers.Serializer[Any]):
    """Page of alarms in the shape of every list; alarms are few enough for one page."""

    next = serializers.CharField(allow_null=True)
    previous = serializers.CharField(allow_null=True)
    results = AlarmSerializer(many=True)


class AlarmViewSet(ProjectViewSet):
    """Open alarms; an alarm ends when its cause ends."""

    queryset = Replica.objects.select_related("cluster__project")
    serializer_class = AlarmSerializer
    project_path = "cluster__project"
    pagination_class = None
    filters = {"project": "cluster__project__slug", "cluster": "cluster__slug"}

    @extend_schema(responses=AlarmPageSerializer)
    def list(self, request: Request) -> Response:
        """List the open alarms, such as replicas that do not answer and loads that were refused.

        The list has one page.
        """
        rows = [alarm.as_dict() for alarm in open_alarms(self.filter_queryset(self.get_queryset()))]
        return Response({"next": None, "previous": None, "results": rows})
