"""REST: adapters."""

from __future__ import annotations

from typing import Any

from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from adapterhub.api.etags import wanted_tag
from adapterhub.api.permissions import actor_of, named_project
from adapterhub.core.tenancy import Scope
from registry.api.fields import slug_of
from registry.api.resources import BySlug, Named
from registry.models import Adapter, BaseModel


class AdapterSerializer(serializers.ModelSerializer[Adapter]):
    """An adapter; its project and base model are given by slug."""

    project = slug_of()
    base_model = slug_of()

    class Meta:
        model = Adapter
        fields = ["slug", "project", "base_model", "description", "tags", "archived_at", "created_at"]


class NewAdapterSerializer(serializers.Serializer[Any]):
    """The adapter to create: project, slug and base model, which never change, and its description and tags."""

    project = serializers.SlugField()
    slug = serializers.SlugField(max_length=50)
    base_model = serializers.SlugRelatedField(slug_field="slug", queryset=BaseModel.objects.all())
    description = serializers.CharField(required=False, allow_blank=True, default="", max_length=10_000)
    tags = serializers.ListField(child=serializers.CharField(max_length=50), required=False, default=list)


class AdapterChangeSerializer(serializers.Serializer[Any]):
    """The fields of an adapter that can change; one that is left out stays as it is."""

    description = serializers.CharField(required=False, allow_blank=True, max_length=10_000)
    tags = serializers.ListField(child=serializers.CharField(max_length=50), required=False)


class AdapterViewSet(Named):
    """Adapters: named series of versions, each for one base model."""

    queryset = Adapter.objects.select_related("project", "base_model")
    serializer_class = AdapterSerializer
    pagination_class = BySlug
    lookup_field = "slug"
    filters = {"project": "project__slug", "base_model": "base_model__slug"}
    scopes = {"create": Scope.PUBLISH, "partial_update": Scope.PUBLISH}

    @extend_schema(request=NewAdapterSerializer, responses={201: AdapterSerializer})
    def create(self, request: Request) -> Response:
        """Create an adapter."""
        fields = self.read(NewAdapterSerializer)
        project = named_project(request, fields.pop("project"), Scope.PUBLISH)
        return self.write(Adapter.create(project=project, by=actor_of(request), **fields), 201)

    @extend_schema(request=AdapterChangeSerializer, responses=AdapterSerializer)
    def partial_update(self, request: Request, slug: str) -> Response:
        """Change an adapter's description or tags.

        With If-Match, only if the adapter is in the state that the tag names.
        """
        adapter = self.get_object()
        changes = self.read(AdapterChangeSerializer)
        adapter.describe(by=actor_of(request), expected=wanted_tag(request), **changes)
        return self.write(adapter)
