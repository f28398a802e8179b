"""REST: usage by project, alias, version and day, as JSON or CSV."""

from __future__ import annotations

import csv
import io
from typing import Any

from django.http import HttpResponse
from django.utils.timezone import now
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema, extend_schema_serializer
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from adapterhub.api.permissions import projects_with
from adapterhub.api.unknown_fields import require_known
from adapterhub.api.views import ProjectViewSet
from adapterhub.core.tenancy import Scope
from registry.models import UsageDay
from training.usage import COUNTS, DIMENSIONS, Period, usage

# A spreadsheet would run a cell that begins with one of these.
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


class UsageQuerySerializer(serializers.Serializer[Any]):
    """The period, the groups and the filters of a usage report."""

    since = serializers.DateField(required=False, help_text="First day (UTC); 30 days before the last without it.")
    until = serializers.DateField(required=False, help_text="Last day (UTC); today without it.")
    by = serializers.CharField(
        default=",".join(DIMENSIONS), max_length=60, help_text="Groups: any of project, alias, version and day."
    )
    project = serializers.CharField(required=False, max_length=50)
    alias = serializers.CharField(required=False, max_length=50)
    version = serializers.CharField(required=False, max_length=160, help_text="A served name.")

    def validate_by(self, text: str) -> list[str]:
        """Return the groups as a list. Raises ValidationError for none, an unknown one or one that is named twice."""
        names = [name for name in text.split(",") if name]
        if not names or set(names) - set(DIMENSIONS) or len(set(names)) < len(names):
            raise serializers.ValidationError(f"Name some of {', '.join(DIMENSIONS)}, each once.")
        return names


class UsageSerializer(serializers.Serializer[Any]):
    """The usage of one group; of the dimensions it has those that `by` names."""

    project = serializers.CharField(required=False)
    alias = serializers.CharField(required=False, help_text="Empty for requests that named a version, and trainings.")
    version = serializers.CharField(required=False)
    day = serializers.DateField(required=False)
    requests = serializers.IntegerField()
    failures = serializers.IntegerField()
    cold_loads = serializers.IntegerField(help_text="Requests that waited for a load.")
    prompt_tokens = serializers.IntegerField()
    completion_tokens = serializers.IntegerField()
    gpu_seconds = serializers.FloatField(help_text="Of trainings that ended: devices times their time.")
    cost = serializers.FloatField(allow_null=True, help_text="By ADAPTERHUB_PRICES; null without prices.")


@extend_schema_serializer(many=False)
class UsagePageSerializer(serializers.Serializer[Any]):
    """Page of usage in the shape of every list; a report is one page."""

    next = serializers.CharField(allow_null=True)
    previous = serializers.CharField(allow_null=True)
    results = UsageSerializer(many=True)


class UsageViewSet(ProjectViewSet):
    """Usage: requests, tokens, cold loads, GPU seconds and cost."""

    queryset = UsageDay.objects.all()
    serializer_class = UsageSerializer
    pagination_class = None
    scopes = {"list": Scope.READ, "export": Scope.READ}

    @extend_schema(parameters=[UsageQuerySerializer], responses=UsagePageSerializer)
    def list(self, request: Request) -> Response:
        """Return the usage of the projects that the caller may read, grouped by project, alias, version and day."""
        rows, _ = report(request)
        return Response({"next": None, "previous": None, "results": rows})

    @extend_schema(parameters=[UsageQuerySerializer], responses={(200, "text/csv"): OpenApiTypes.STR})
    def export(self, request: Request) -> HttpResponse:
        """Return the usage report as CSV; text that a spreadsheet would run as a formula is quoted."""
        rows, groups = report(request)
        content = io.StringIO()
        writer = csv.DictWriter(content, [*groups, *COUNTS, "cost"])
        writer.writeheader()
        writer.writerows({name: plain(value) for name, value in row.items()} for row in rows)
        disposition = 'attachment; filename="usage.csv"'
        return HttpResponse(content.getvalue(), "text/csv; charset=utf-8", headers={"Content-Disposition": disposition})


def report(request: Request) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the rows of the usage report that the query asks for, and their dimensions.

    Raises Invalid or ValidationError for a query that is not valid.
    """
    given = request.query_params.dict()
    serializer = UsageQuerySerializer(data=given)
    require_known(serializer, given)
    serializer.is_valid(raise_exception=True)
    query = serializer.validated_data
    projects = projects_with(request, Scope.READ)
    if "project" in query:
        projects = projects.filter(slug=query["project"])
    period = Period.of(query.get("since"), query.get("until"), now().date())
    only = {name: query[name] for name in ("alias", "version") if name in query}
    return usage(projects, period, query["by"], **only), query["by"]


def plain(value: Any) -> Any:
    """Return a cell of a CSV file, with text quoted that a spreadsheet would run as a formula."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value
