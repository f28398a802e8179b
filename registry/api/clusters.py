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
from adapterhub.api.unknown_fields import require_known
from adapterhub.core.tenancy import Scope
from registry.api.fields import ReasonSerializer, reference, slug_of
from registry.api.resources import BySlug, Named, Reading, named_record
from registry.models import BaseModel, Cluster, ClusterGrant, Replica
from registry.models.fleet.grant import SHARES
from registry.serving.cluster_state import cluster_state


class ClusterSerializer(serializers.ModelSerializer[Cluster]):
    """A cluster with its engine, base model and adapter slots."""

    project = slug_of()
    base_model = slug_of()

    has_engine_key = serializers.SerializerMethodField(help_text="True if its engines ask for an API key.")

    class Meta:
        model = Cluster
        fields = [
            "slug",
            "project",
            "base_model",
            "engine",
            "max_lora_rank",
            "max_loras",
            "routing",
            "discovery",
            "discovered_at",
            "discovery_message",
            "has_engine_key",
            "reconciled_at",
            "created_at",
        ]

    def get_has_engine_key(self, cluster: Cluster) -> bool:
        """Return True if an API key of the engines is stored; the key itself is never shown."""
        return bool(cluster.sealed_key)


class EngineKeyField(serializers.RegexField):
    """A write-only field for the engines' API key: visible ASCII characters, at most 500; never part of a response."""

    def __init__(self, **kwargs: Any) -> None:
        text = "The key that the engines were started with (vllm --api-key); kept encrypted, never shown. Empty = none."
        super().__init__(
            r"^[!-~]*$", max_length=500, required=False, allow_blank=True, write_only=True, help_text=text, **kwargs
        )


class NewClusterSerializer(serializers.ModelSerializer[Cluster]):
    """The cluster to create; `max_lora_rank` and `max_loras` are the limits that its engines were started with."""

    project = serializers.SlugField()
    base_model = serializers.SlugRelatedField(slug_field="slug", queryset=BaseModel.objects.ready())
    engine_key = EngineKeyField()

    class Meta:
        model = Cluster
        fields = [
            "project",
            "slug",
            "base_model",
            "engine",
            "max_lora_rank",
            "max_loras",
            "routing",
            "discovery",
            "engine_key",
        ]
        # The database refuses a second slug of the project.
        validators: list[Any] = []


class ClusterChangeSerializer(serializers.ModelSerializer[Cluster]):
    """The changeable part of a cluster: how its engines were started, their API key, and how routers choose.

    What is left out stays.
    """

    engine_key = EngineKeyField()
    reason = serializers.CharField(max_length=2000)
    confirm = serializers.BooleanField(default=False, help_text="True: live versions above the new rank are cut off.")

    class Meta:
        model = Cluster
        fields = ["engine", "max_lora_rank", "max_loras", "routing", "discovery", "engine_key", "reason", "confirm"]
        changeable = ("engine", "max_lora_rank", "max_loras", "routing", "discovery")
        extra_kwargs = {name: {"required": False} for name in changeable}

    def validate(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Return the fields. Raises ValidationError if only `reason` and `confirm` are given."""
        if not fields.keys() - {"reason", "confirm"}:
            raise serializers.ValidationError({"engine": "Name what changes."})
        return fields


class CuttingOffSerializer(ReasonSerializer):
    """The reason for a drain or a removal, and the consent that versions which no other replica holds are cut off."""

    confirm = serializers.BooleanField(default=False, help_text="True: what it alone holds is cut off.")


class GrantSerializer(serializers.ModelSerializer[ClusterGrant]):
    """A grant of a cluster to another project, with that project's shares."""

    project = serializers.CharField(source="offered_to")
    is_accepted = serializers.SerializerMethodField(help_text="True when the project has put an alias on the cluster.")

    class Meta:
        model = ClusterGrant
        fields = ["project", "is_accepted", *SHARES, "granted_by", "granted_at", "withdrawn_at"]

    def get_is_accepted(self, grant: ClusterGrant) -> bool:
        """Return True if the project has accepted the grant by putting an alias on the cluster."""
        return grant.project_id is not None


class SharesSerializer(serializers.Serializer[Any]):
    """A project's shares of a granted cluster; null for slots is an equal part, and otherwise no limit."""

    slots = serializers.IntegerField(
        min_value=1, max_value=2**31 - 1, required=False, allow_null=True, help_text="Adapter slots of a replica."
    )
    requests_per_s = serializers.FloatField(min_value=0.001, max_value=1e6, required=False, allow_null=True)
    tokens_per_min = serializers.IntegerField(min_value=1, max_value=2**31 - 1, required=False, allow_null=True)


class ChangedGrantSerializer(SharesSerializer):
    """The new shares of a project's grant, and why; a share that is not named stays as it is."""

    project = serializers.SlugField(max_length=50)
    reason = serializers.CharField(max_length=2000)


class NewGrantSerializer(SharesSerializer):
    """The project to grant a cluster to, and its shares."""

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
            "foreign",
            "refused",
            "draining_since",
            "is_discovered",
            "gone_since",
            "message",
            "seen_at",
        ]


class AddressSerializer(serializers.Serializer[Any]):
    """The address of a replica."""

    # A host of a private network is often a bare name, which URLField refuses.
    url = serializers.RegexField(r"^[Hh][Tt]{2}[Pp][Ss]?://([\w.-]+|\[[\da-fA-F:]+\])(:\d{1,5})?/?$", max_length=300)

    def validate_url(self, url: str) -> str:
        """Return the address unchanged.

        Raises ValidationError if its port is 0 or above 65535, or its IPv6 address is malformed.
        """
        try:
            parts = urlsplit(url)
            is_reachable = parts.port != 0 and ("[" not in url or IPv6Address(parts.hostname or ""))
        except ValueError:
            is_reachable = False
        if not is_reachable:
            raise serializers.ValidationError("Give a host and a port from 1 to 65535.")
        return url


class NewReplicaSerializer(AddressSerializer):
    """The replica to add to a cluster."""

    cluster = reference()


class ReplicaChangeSerializer(AddressSerializer):
    """The replica's new address, and why."""

    reason = serializers.CharField(max_length=2000)


class ReplicaStateSerializer(serializers.Serializer[Any]):
    """The versions that a replica should hold and those that it holds.

    `foreign` are versions that were not loaded by the control loop.
    """

    id = serializers.IntegerField()
    url = serializers.CharField()
    is_healthy = serializers.BooleanField()
    draining_since = serializers.DateTimeField(allow_null=True)
    desired = serializers.ListField(child=serializers.CharField())
    observed = serializers.ListField(child=serializers.CharField())
    missing = serializers.ListField(child=serializers.CharField())
    surplus = serializers.ListField(child=serializers.CharField())
    foreign = serializers.ListField(child=serializers.CharField())
    message = serializers.CharField()


class ClusterViewSet(Named):
    """Clusters: replicas of one engine and one base model behind the router."""

    queryset = Cluster.objects.select_related("project", "base_model")
    serializer_class = ClusterSerializer
    pagination_class = BySlug
    lookup_field = "slug"
    filters = {"project": "project__slug", "base_model": "base_model__slug", "engine": "engine"}
    scopes = {
        "create": Scope.OPERATE,
        "partial_update": Scope.OPERATE,
        "destroy": Scope.OPERATE,
        "drain": Scope.OPERATE,
        "state": Scope.READ,
        "grants": Scope.READ,
        "grant": Scope.OPERATE,
        "change_grant": Scope.OPERATE,
        "withdraw": Scope.OPERATE,
    }

    @extend_schema(request=NewClusterSerializer, responses={201: ClusterSerializer})
    def create(self, request: Request) -> Response:
        """Create a cluster."""
        fields = self.read(NewClusterSerializer)
        project = named_project(request, fields.pop("project"), Scope.OPERATE)
        return self.write(Cluster.create(project=project, by=actor_of(request), **fields), 201)

    @extend_schema(request=ClusterChangeSerializer, responses=ClusterSerializer)
    def partial_update(self, request: Request, slug: str) -> Response:
        """Change how the cluster's engines were started, their API key, the routing, or the source of its replicas."""
        cluster = self.get_object()
        cluster.change(by=actor_of(request), **self.read(ClusterChangeSerializer))
        return self.write(cluster)

    @extend_schema(parameters=[ReasonSerializer], responses={204: None})
    def destroy(self, request: Request, slug: str) -> Response:
        """Delete a cluster that has neither aliases nor replicas."""
        self.get_object().remove(by=actor_of(request), **read_query(request, ReasonSerializer))
        return Response(status=204)

    @extend_schema(request=CuttingOffSerializer, responses=ClusterSerializer)
    @action(detail=True, methods=["post"])
    def drain(self, request: Request, slug: str) -> Response:
        """Drain all replicas of the cluster: they get no more requests, and unload the versions that they hold."""
        cluster = self.get_object()
        cluster.drain(by=actor_of(request), **self.read(CuttingOffSerializer))
        return self.write(cluster)

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

    @extend_schema(request=ChangedGrantSerializer, responses=GrantSerializer)
    @grants.mapping.patch
    def change_grant(self, request: Request, slug: str) -> Response:
        """Change what a project may use of the cluster: slots, requests per second, tokens per minute."""
        granted = self.get_object().change_grant(by=actor_of(request), **self.read(ChangedGrantSerializer))
        return Response(GrantSerializer(granted).data)

    @extend_schema(request=WithdrawnGrantSerializer, responses=GrantSerializer)
    @action(detail=True, methods=["post"], url_path="grants/withdraw")
    def withdraw(self, request: Request, slug: str) -> Response:
        """Withdraw a grant: the replicas unload the project's versions, and its requests no longer go there."""
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
    scopes = dict.fromkeys(("create", "partial_update", "destroy", "drain", "resume"), Scope.OPERATE)

    @extend_schema(request=NewReplicaSerializer, responses={201: ReplicaSerializer})
    def create(self, request: Request) -> Response:
        """Add a replica to a cluster."""
        fields = self.read(NewReplicaSerializer)
        cluster = named_record(self, Cluster, "slug", fields["cluster"], Scope.OPERATE, "cluster")
        return self.write(cluster.add_replica(url=fields["url"], by=actor_of(request)), 201)

    @extend_schema(request=ReplicaChangeSerializer, responses=ReplicaSerializer)
    def partial_update(self, request: Request, pk: str) -> Response:
        """Correct a replica's address. It gets requests again once it was reached there and has loaded its versions."""
        replica = self.get_object()
        fields = self.read(ReplicaChangeSerializer)
        replica.change_address(fields["url"], reason=fields["reason"], by=actor_of(request))
        return self.write(replica)

    @extend_schema(parameters=[CuttingOffSerializer], responses={204: None})
    def destroy(self, request: Request, pk: str) -> Response:
        """Delete a replica, whether it answers or not; its engine process is not stopped."""
        self.get_object().remove(by=actor_of(request), **read_query(request, CuttingOffSerializer))
        return Response(status=204)

    @extend_schema(request=CuttingOffSerializer, responses=ReplicaSerializer)
    @action(detail=True, methods=["post"])
    def drain(self, request: Request, pk: str) -> Response:
        """Drain a replica: it gets no more requests, finishes running answers, and unloads its versions."""
        replica = self.get_object()
        replica.drain(by=actor_of(request), **self.read(CuttingOffSerializer))
        return self.write(replica)

    @extend_schema(request=ReasonSerializer, responses=ReplicaSerializer)
    @action(detail=True, methods=["post"])
    def resume(self, request: Request, pk: str) -> Response:
        """Let a drained replica serve again."""
        replica = self.get_object()
        replica.resume(by=actor_of(request), **self.read(ReasonSerializer))
        return self.write(replica)


def read_query(request: Request, serializer_class: type[serializers.Serializer[Any]]) -> dict[str, Any]:
    """Return the query parameters of a DELETE, which has no body, validated by the serializer class.

    Raises an error for parameters that are invalid or that the serializer does not have.
    """
    given = request.query_params.dict()
    serializer = serializer_class(data=given)
    require_known(serializer, given)
    serializer.is_valid(raise_exception=True)
    validated: dict[str, Any] = serializer.validated_data
    return validated
