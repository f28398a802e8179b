"""Common parts of the calls of MLflow's API: an adapter by a registered model's name, errors in MLflow's words."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any

from django.http import Http404
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from adapterhub.api.permissions import projects_of, require_scope, seen_in
from adapterhub.api.unknown_fields import require_known
from adapterhub.api.views import ProjectViewSet
from adapterhub.core.errors import Invalid
from adapterhub.core.references import REFERENCE_IN_BODY, named
from adapterhub.core.tenancy import Scope
from registry.models import Adapter, AdapterVersion

# MLflow's error codes, by ours and else by the status.
ERROR_CODES = {
    "slug_taken": "RESOURCE_ALREADY_EXISTS",
    "name_taken": "RESOURCE_ALREADY_EXISTS",
    "version_exists": "RESOURCE_ALREADY_EXISTS",
    "not_in_mlflow": "NOT_IMPLEMENTED",
    400: "MALFORMED_REQUEST",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "RESOURCE_DOES_NOT_EXIST",
    405: "ENDPOINT_NOT_FOUND",
    409: "INVALID_STATE",
    429: "REQUEST_LIMIT_EXCEEDED",
    500: "INTERNAL_ERROR",
    503: "TEMPORARILY_UNAVAILABLE",
    507: "RESOURCE_EXHAUSTED",
}
# Tags with this prefix are ours: read-only, but those that a version or adapter is created with.
OURS = "hub."


def not_in_mlflow(way: str, field: str = "") -> Invalid:
    """Return the Invalid to raise for an MLflow call that is not supported; the text `way` says what to do instead."""
    return Invalid(way, field=field, code="not_in_mlflow")


class TagSerializer(serializers.Serializer[Any]):
    """A tag: its key and its value."""

    key = serializers.CharField(max_length=250)
    value = serializers.CharField(max_length=5000, allow_blank=True, default="")


class MlflowViewSet(ProjectViewSet):
    """Calls of MLflow's API. They are not in the OpenAPI description, as MLflow describes them."""

    schema = None
    pagination_class = None
    filter_backends = ()
    queryset = Adapter.objects.select_related("project", "base_model")

    def handle_exception(self, exc: Exception) -> Response:
        """Return the response to an error, with MLflow's `error_code` and `message` beside the problem's own fields."""
        response = super().handle_exception(exc)
        problem = getattr(response, "data", None)
        if isinstance(problem, dict) and "detail" in problem:
            code = ERROR_CODES.get(problem["code"]) or ERROR_CODES.get(response.status_code, "INVALID_PARAMETER_VALUE")
            response.data = {**problem, "error_code": code, "message": problem["detail"]}
        return response

    def query(self, serializer_class: type[serializers.Serializer[Any]]) -> dict[str, Any]:
        """Return the query parameters, validated by the serializer class.

        Raises Invalid for unknown parameters and ValidationError for invalid values.
        """
        serializer = serializer_class(data=self.request.query_params, context={"request": self.request})
        require_known(serializer, self.request.query_params)
        serializer.is_valid(raise_exception=True)
        validated: dict[str, Any] = serializer.validated_data
        return validated

    def fields(self, serializer_class: type[serializers.Serializer[Any]]) -> dict[str, Any]:
        """Return the validated fields of the request: of the query for a GET, else of the body.

        Raises Invalid for unknown fields and ValidationError for invalid values.
        """
        return self.query(serializer_class) if self.request.method == "GET" else self.read(serializer_class)

    def adapter(self, name: str) -> Adapter:
        """Return the adapter that a registered model's name means, if the caller has the action's scope there.

        Raises Http404 for one that the caller does not see, Conflict for a name that several projects have, and
        NotAllowed without the scope.
        """
        rows = seen_in(self.queryset.all(), "project", self.request)
        adapter: Adapter | None = named(rows, "project", "slug", name) if re.match(REFERENCE_IN_BODY, name) else None
        if adapter is None:
            raise Http404
        self.check_object_permissions(self.request, adapter)
        return adapter

    def version(self, name: str, number: str) -> AdapterVersion:
        """Return the version with this number of the named adapter.

        Raises Http404 if there is none, and what `adapter` raises.
        """
        adapter = self.adapter(name)
        version = adapter.versions.filter(number=int(number)).first() if re.fullmatch(r"\d{1,9}", number) else None
        if version is None:
            raise Http404
        version.adapter = adapter
        return version

    def name_of(self, adapter: Adapter) -> str:
        """Return the registered model's name: the adapter's slug, or `project.slug` for callers of several projects."""
        if not hasattr(self, "_sees_several"):
            self._sees_several = projects_of(self.request)[:2].count() > 1
        return adapter.ref if self._sees_several else adapter.slug


def require_project(request: Request, adapter: Adapter, scope: Scope) -> None:
    """Raise NotAllowed unless the caller has `scope` in the adapter's project."""
    require_scope(request, adapter.project, scope)


def millis(moment: datetime) -> int:
    """Return the time in milliseconds since 1970, as MLflow counts."""
    return int(moment.timestamp() * 1000)
