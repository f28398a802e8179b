"""REST: clusters, their grants to other projects, and their replicas."""

from __future__ import annotations

from ipaddress import IPv6Address
from typing import Any
from urllib.parse import urlsplit

from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from adapterhub.api.permissions import actor_of, named_project
from adapterhub.core.tenancy import Scope
from registry.api.fields import reference, slug_of
from registry.api.resources import BySlug, Named, Reading, named_record
from registry.models import BaseModel, Cluster, ClusterGrant, Replica
from registry.serving.cluster_state import cluster_state


class ClusterSerializer(serializers.ModelSerializer[Cluster]):
    """A cluster with its engine, base model and adapter slots."""

    project = slug_of()
    base_model = slug_of()

    class Meta:
        model = Cluster
        fields = ["slug", "project", "base_model", "engine", "max_lora_rank", "max_loras", "created_at"]


class NewClusterSerializer(serializers.ModelSerializer[Cluster]):
    """The cluster to create; `max_lora_rank` and `max_loras` are the limits that its engines were started with."""

    project = serializers.SlugField()
    base_model = serializers.SlugRelatedField(slug_field="slug", queryset=BaseModel.objects.ready())

    class Meta:
        model = Cluster
        fields = ["project", "slug", "base_model", "engine", "max_lora_rank", "max_loras"]
        # The database refuses a second slug of the project.
        validators: list[Any] = []


class GrantSerializer(serializers.ModelSerializer[ClusterGrant]):
    """A grant of a cluster to another project."""

    project = serializers.CharField(source="offered_to")
    is_accepted = serializers.SerializerMethodField(help_text="True when the project has put an alias on the cluster.")

    class Meta:
        model = ClusterGrant
        fields = ["project", "is_accepted", "granted_by", "granted_at", "withdrawn_at"]

    def get_is_accepted(self, grant: ClusterGrant) -> bool:
        """Return True if the project has accepted the grant."""
        return grant.project_id is not None


class NewGrantSerializer(serializers.Serializer[Any]):
    """The project to grant a cluster to."""

    project = serializers.SlugField(max_length=50, help_text="Slug of the project that may use the cluster.")
    reason = serializers.CharField(max_length=2000, required=False, allow_blank=True, default="")


class WithdrawnGrantSerializer(serializers.Serializer[Any]):
    """The project whose grant ends, and why."""

    project = serializers.SlugField(max_length=50)
    reason = serializers.CharField(max_length=2000)


class ReplicaSerializer(serializers.ModelSerializer[Replica]):
    """A replica as it was last observed."""

    cluster = slug_of()

    class Meta:
        model = Replica
        fields = [
            "id",
            "cluster",
            "url",
            "is_healthy",
            "engine_version",
            "max_length",
            "loaded",
            "refused",
            "message",
            "seen_at",
        ]


class NewReplicaSerializer(serializers.Serializer[Any]):
    """The replica to add to a cluster."""

    cluster = reference()
    # A host of a private network is often a bare name, which URLField refuses.
    url = serializers.RegexField(r"^https?://([\w.-]+|\[[\da-fA-F:]+\])(:\d{1,5})?/?$", max_length=300)

    def validate_url(self, url: str) -> str:
        """Return the address.

        Raises ValidationError if its port is 0 or no number, or its IPv6 address is malformed.
        """
        try:
            parts = urlsplit(url)
            is_reachable = parts.port != 0 and ("[" not in url or IPv6Address(parts.hostname or ""))
        except ValueError:
            is_reachable = False
        if not is_reachable:
            raise serializers.ValidationError("Give a host and a port from 1 to 65535.")
        return url


class ReplicaStateSerializer(serializers.Serializer[Any]):
    """Desired and observed versions of a replica."""

    url = serializers.CharField()
    is_healthy = serializers.BooleanField()
    desired = serializers.ListField(child=serializers.CharField())
    observed = serializers.ListField(child=serializers.CharField())
    missing = serializers.ListField(child=serializers.CharField())
    surplus = serializers.ListField(child=serializers.CharField())
    message = serializers.CharField()


class ClusterViewSet(Named):
    """Clusters: replicas behind one router."""

    queryset = Cluster.objects.select_related("project", "base_model")
    serializer_class = ClusterSerializer
    pagination_class = BySlug
    lookup_field = "slug"
    filters = {"project": "project__slug", "base_model": "base_model__slug", "engine": "engine"}
    scopes = {
        "create": Scope.OPERATE,
        "state": Scope.READ,
        "grants": Scope.READ,
        "grant": Scope.OPERATE,
        "withdraw": Scope.OPERATE,
    }

    @extend_schema(request=NewClusterSerializer, responses={201: ClusterSerializer})
    def create(self, request: Request) -> Response:
        """Create a cluster."""
        fields = self.read(NewClusterSerializer)
        project = named_project(request, fields.pop("project"), Scope.OPERATE)
        return self.write(Cluster.create(project=project, by=actor_of(request), **fields), 201)

    @extend_schema(responses=GrantSerializer(many=True))
    @action(detail=True, pagination_class=None)
    def grants(self, request: Request, slug: str) -> Response:
        """List the grants of the cluster to other projects, newest first, withdrawn ones included."""
        return Response(GrantSerializer(self.get_object().grants.all(), many=True).data)

    @extend_schema(request=NewGrantSerializer, responses={201: GrantSerializer})
    @grants.mapping.post
    def grant(self, request: Request, slug: str) -> Response:
        """Grant the cluster to another project, which accepts by putting an alias on it.

        The answer is the same whether a project of this slug exists or not.
        """
        granted = self.get_object().grant(by=actor_of(request), **self.read(NewGrantSerializer))
        return Response(GrantSerializer(granted).data, 201)

    @extend_schema(request=WithdrawnGrantSerializer, responses=GrantSerializer)
    @action(detail=True, methods=["post"], url_path="grants/withdraw")
    def withdraw(self, request: Request, slug: str) -> Response:
        """Withdraw a grant: the replicas unload the project's versions, and its requests go there no more."""
        granted = self.get_object().withdraw(by=actor_of(request), **self.read(WithdrawnGrantSerializer))
        return Response(GrantSerializer(granted).data)

    @extend_schema(responses=ReplicaStateSerializer(many=True))
    @action(detail=True, pagination_class=None)
    def state(self, request: Request, slug: str) -> Response:
        """Return the desired and the observed state of each replica."""
        return Response(cluster_state(self.get_object()))


class ReplicaViewSet(Reading):
    """Replicas: the engine processes of clusters."""

    queryset = Replica.objects.select_related("cluster__project")
    serializer_class = ReplicaSerializer
    project_path = "cluster__project"
    filters = {"project": "cluster__project__slug", "cluster": "cluster__slug", "is_healthy": "is_healthy"}
    scopes = {"create": Scope.OPERATE}

    @extend_schema(request=NewReplicaSerializer, responses={201: ReplicaSerializer})
    def create(self, request: Request) -> Response:
        """Add a replica to a cluster."""
        fields = self.read(NewReplicaSerializer)
        cluster = named_record(self, Cluster, "slug", fields["cluster"], Scope.OPERATE, "cluster")
        return self.write(cluster.add_replica(url=fields["url"], by=actor_of(request)), 201)
