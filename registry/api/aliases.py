"""REST: aliases and the history of what they served."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from django.db import transaction
from django.http import Http404
from django.utils.dateparse import parse_datetime
from django.utils.timezone import now
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from adapterhub.accounts.models import Project
from adapterhub.api.etags import wanted_tag
from adapterhub.api.permissions import actor_of, named_project, seen_in
from adapterhub.core.errors import Invalid
from adapterhub.core.references import named, parts_of
from adapterhub.core.tenancy import Scope
from registry.api.fields import reference, slug_of
from registry.api.resources import ByName, Named, named_record
from registry.api.responsibility import ResponsibilitySerializer, as_json
from registry.evidence.responsibility import responsibility
from registry.models import Adapter, AdapterVersion, Alias, AliasMove, Cluster


class AliasSerializer(serializers.ModelSerializer[Alias]):
    """An alias with the version that it serves now, and its policy."""

    project = slug_of()
    cluster = slug_of()
    version = slug_of("served_name")
    default_of = serializers.SlugRelatedField[Adapter](
        slug_field="slug",
        read_only=True,
        allow_null=True,
        help_text="The adapter whose bare name stands for this alias.",
    )

    class Meta:
        model = Alias
        fields = ["name", "project", "cluster", "version", "policy", "default_of", "generation", "created_at"]


class NewAliasSerializer(serializers.Serializer[Any]):
    """The alias to create, and the version that it serves at once."""

    project = serializers.SlugField()
    name = serializers.SlugField(max_length=50)
    cluster = reference(help_text="Of another project: `project.cluster`, when it is granted to this project.")
    version = serializers.CharField(max_length=200, help_text="Served name, e.g. eu.dora.v1-0123456789ab.")
    policy = serializers.DictField(required=False, default=dict)
    default = serializers.BooleanField(
        required=False, default=False, help_text="Whether the adapter's bare name stands for this alias."
    )


class PolicySerializer(serializers.Serializer[Any]):
    """A change of an alias: a policy in place of the present one, whether it is its adapter's default, or both.

    The adapter's bare name stands for its default alias. `reason` is recorded.
    """

    policy = serializers.DictField(required=False)
    default = serializers.BooleanField(
        required=False, help_text="Whether the served adapter's bare name stands for this alias."
    )
    reason = serializers.CharField(max_length=2000, required=False, default="")

    def validate(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Return the fields. Raises ValidationError if neither `policy` nor `default` is given."""
        if not fields.keys() & {"policy", "default"}:
            raise serializers.ValidationError({"policy": "Name policy or default."})
        return fields


class MoveSerializer(serializers.Serializer[Any]):
    """The version to move an alias to, and the version that the caller expects it to serve now."""

    version = serializers.CharField(max_length=200)
    expected_version = serializers.CharField(max_length=200)
    reason = serializers.CharField(max_length=2000)


class AliasMoveSerializer(serializers.ModelSerializer[AliasMove]):
    """One move of an alias: the version that it began to serve, when, by whom and why."""

    version = slug_of("served_name")

    class Meta:
        model = AliasMove
        fields = ["version", "at", "actor_name", "reason"]


def cluster_for(request: Request, project: Project, reference: str) -> Cluster:
    """Return the cluster, by the name `reference`, that an alias of the project is to be served on.

    A cluster of another project that the caller does not see and that does not serve this project yet must be named
    with its project, as in `infra.gpu`, so that nobody can make a caller use a cluster by mistake by granting it.
    Raises Invalid for an unknown cluster.
    """
    owner, _ = parts_of(reference)
    clusters = Cluster.objects.select_related("project", "base_model")
    seen = seen_in(clusters, "project", request) | clusters.serving(project)
    choices = [clusters.filter(project=project), clusters.offered_to(project) if owner else seen]
    for rows in choices:
        cluster: Cluster | None = named(rows.distinct(), "project", "slug", reference)
        if cluster:
            return cluster
    field = "cluster"
    raise Invalid(f"There is no {field} {reference!r} for {project}.", field=field, code=f"unknown_{field}")


class AliasViewSet(Named):
    """Aliases: the public names that applications send as `model`.

    They can be listed, read, created and changed, but not deleted. The alias' move, its history and the
    responsibility for what it served are actions of their own.
    """

    # A version's ranks are hundreds of numbers, which the alias' response does not contain.
    queryset = Alias.objects.select_related("project", "cluster", "version", "default_of").defer(
        "version__ranks", "version__config", "version__metrics", "version__lineage"
    )
    serializer_class = AliasSerializer
    pagination_class = ByName
    lookup_field = "name"
    filters = {"project": "project__slug", "cluster": "cluster__slug", "version": "version__served_name"}
    scopes = {
        **dict.fromkeys(("create", "partial_update", "move"), Scope.OPERATE),
        **dict.fromkeys(("history", "responsibility"), Scope.READ),
    }

    def version(self, served_name: str, field: str = "version") -> AdapterVersion:
        """Return the version with this served name.

        Raises Invalid, which blames `field`, if the caller does not see it.
        """
        version: AdapterVersion = named_record(self, AdapterVersion, "served_name", served_name, Scope.READ, field)
        return version

    @extend_schema(request=NewAliasSerializer, responses={201: AliasSerializer})
    def create(self, request: Request) -> Response:
        """Create an alias that serves a version."""
        fields = self.read(NewAliasSerializer)
        project = named_project(request, fields["project"], Scope.OPERATE)
        cluster = cluster_for(request, project, fields["cluster"])
        alias = Alias.create(
            project=project,
            name=fields["name"],
            cluster=cluster,
            version=self.version(fields["version"]),
            policy=fields["policy"],
            default=fields["default"],
            by=actor_of(request),
        )
        return self.write(alias, 201)

    @extend_schema(request=PolicySerializer, responses=AliasSerializer)
    def partial_update(self, request: Request, name: str) -> Response:
        """Change the policy of the alias, or whether the bare name of its adapter stands for it."""
        alias, fields, by = self.get_object(), self.read(PolicySerializer), actor_of(request)
        tag, reason = wanted_tag(request), fields["reason"]
        with transaction.atomic():
            if "default" in fields:
                alias.set_default(fields["default"], by=by, reason=reason, expected_tag=tag)
            if "policy" in fields:
                alias.set_policy(fields["policy"], by=by, reason=reason, expected_tag=tag)
        return self.write(alias)

    @extend_schema(request=MoveSerializer)
    @action(detail=True, methods=["post"])
    def move(self, request: Request, name: str) -> Response:
        """Serve another version at once, if the alias still serves the expected version."""
        alias = self.get_object()
        fields = self.read(MoveSerializer)
        expected = alias.version
        if expected.served_name != fields["expected_version"]:
            expected = self.version(fields["expected_version"], "expected_version")
        alias.move(
            self.version(fields["version"]),
            expected=expected,
            reason=fields["reason"],
            by=actor_of(request),
            expected_tag=wanted_tag(request),
        )
        return self.write(alias)

    @extend_schema(
        parameters=[OpenApiParameter("at", datetime, description="Only the move that served at this time.")],
        responses=AliasMoveSerializer(many=True),
    )
    @action(detail=True, pagination_class=None)
    def history(self, request: Request, name: str) -> Response:
        """List every move of the alias, newest first; with `at`, only the move that served at that time."""
        moves = self.get_object().moves.select_related("version")
        if at := request.query_params.get("at"):
            moves = moves.filter(at__lte=moment_of(at))[:1]
        return Response(AliasMoveSerializer(moves, many=True).data)

    @extend_schema(
        parameters=[OpenApiParameter("at", datetime, description="The time that is asked about; now by default.")],
        responses=ResponsibilitySerializer,
    )
    @action(detail=True)
    def responsibility(self, request: Request, name: str) -> Response:
        """Return what the alias served at a time: who asked, decided and signed, on which verdicts, by which rollout.

        404 for a time before the alias existed.
        """
        at = request.query_params.get("at")
        answer = responsibility(self.get_object(), moment_of(at) if at else now())
        if answer is None:
            raise Http404
        return Response(as_json(answer))


def moment_of(text: str) -> datetime:
    """Parse a time that has a time zone, and return it in UTC, since Postgres accepts fewer zones.

    Raises Invalid for a time without a zone, and for any other text.
    """
    try:
        if (moment := parse_datetime(text)) and moment.tzinfo:
            return moment.astimezone(UTC)
    except (ValueError, OverflowError):
        pass
    raise Invalid("`at` must be a time with time zone, e.g. 2026-11-23T12:00:00Z.", field="at")
