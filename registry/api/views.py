"""REST: base models, adapters, versions, clusters, replicas, aliases and responses."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any, cast

from django.core.files.uploadedfile import TemporaryUploadedFile, UploadedFile
from django.db import transaction
from django.db.models import Model
from django.http import FileResponse, Http404
from django.utils.dateparse import parse_datetime
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import mixins
from rest_framework.decorators import action
from rest_framework.negotiation import DefaultContentNegotiation
from rest_framework.request import Request
from rest_framework.response import Response

from adapterhub.accounts.models import ApiToken, Project, User
from adapterhub.api.conditions import wanted_tag
from adapterhub.api.pagination import NewestFirst
from adapterhub.api.permissions import actor_of, named_project, projects_of, require_scope, seen_in
from adapterhub.api.views import ProjectViewSet, Retrieving
from adapterhub.audit.access_log import observe
from adapterhub.audit.tags import Tag
from adapterhub.core.errors import Invalid
from adapterhub.core.references import REFERENCE, named, parts_of
from adapterhub.core.tenancy import Scope
from adapterhub.workspace import scratch
from registry import models
from registry.api import serializers as shapes
from registry.api.evidence import SCOPES as EVIDENCE
from registry.api.evidence import VersionEvidence
from registry.api.transfers import SCOPES as TRANSFERS
from registry.api.transfers import VersionTransfers, take
from registry.exports import service as exports
from registry.serving.cluster_state import cluster_state
from registry.uploads.inbox import take_folder


class FormatIsNoRenderer(DefaultContentNegotiation):
    """Content negotiation without `?format=`, which names the export format here and not a renderer."""

    settings = cast(Any, SimpleNamespace(URL_FORMAT_OVERRIDE=None))


class Reading(ProjectViewSet, mixins.ListModelMixin, Retrieving):
    """A resource that can be listed and read."""


class Named(Reading):
    """A resource whose objects are named in their project: `dora`, or `eu.dora` where two projects have one."""

    lookup_value_regex = REFERENCE

    def get_object(self) -> Any:
        """Return the object that the path names. Raises Conflict if several projects have one of this name."""
        rows = self.filter_queryset(self.get_queryset())
        thing = named(rows, self.project_path, self.lookup_field, self.kwargs[self.lookup_field])
        if thing is None:
            raise Http404
        self.check_object_permissions(self.request, thing)
        return thing


class BySlug(NewestFirst):
    """Pages of rows by slug."""

    ordering = "slug"


class ByName(NewestFirst):
    """Pages of rows by name."""

    ordering = "name"


class BaseModelViewSet(Reading):
    """Base models. They belong to the installation, so every project may train on them."""

    queryset = models.BaseModel.objects.all()
    serializer_class = shapes.BaseModelSerializer
    pagination_class = BySlug
    lookup_field = "slug"
    filters = {"status": "status", "source": "source"}
    scopes = {"create": Scope.ADMIN}

    def get_queryset(self) -> Any:
        """Return all base models, which every project may use."""
        return models.BaseModel.objects.all()

    def project_of(self, record: Any) -> None:
        """Return None, as a base model belongs to no project."""

    @extend_schema(request=shapes.NewBaseModelSerializer, responses={202: shapes.BaseModelSerializer})
    def create(self, request: Request) -> Response:
        """Register a folder, a hub id, or a whole version as a base model.

        The call returns at once with 202; `status` says when the base model is ready.
        """
        fields = self.read(shapes.NewBaseModelSerializer)
        require_admin_somewhere(request)
        if "version" in fields:
            version = whole_version(request, fields["version"])
            model = models.BaseModel.register_version(slug=fields["slug"], version=version, by=actor_of(request))
        else:
            model = models.BaseModel.register(by=actor_of(request), **fields)
        return self.write(model, 202)


def whole_version(request: Request, served_name: str) -> models.AdapterVersion:
    """Return the version to register as a base model. Raises Invalid for an unknown one.

    The caller must be an admin of its project, because all projects can use its weights then.
    """
    visible = models.AdapterVersion.objects.filter(adapter__project__in=projects_of(request))
    version = visible.select_related("adapter__project", "adapter__base_model").filter(served_name=served_name).first()
    if version is None:
        raise Invalid(f"There is no version {served_name!r}.", field="version", code="unknown_version")
    named_project(request, version.project.slug, Scope.ADMIN)
    return version


def require_admin_somewhere(request: Request) -> None:
    """Require a token of scope admin, or an admin of any project: base models belong to no project."""
    token = cast(ApiToken | None, request.auth)
    project = token.project if token else Project.objects.visible_to(cast(User, request.user)).first()
    named_project(request, project.slug if project else "", Scope.ADMIN)


class AdapterViewSet(Named):
    """Adapters: named lines of work."""

    queryset = models.Adapter.objects.select_related("project", "base_model")
    serializer_class = shapes.AdapterSerializer
    pagination_class = BySlug
    lookup_field = "slug"
    filters = {"project": "project__slug", "base_model": "base_model__slug"}
    scopes = {"create": Scope.PUBLISH, "partial_update": Scope.PUBLISH}

    @extend_schema(request=shapes.NewAdapterSerializer, responses={201: shapes.AdapterSerializer})
    def create(self, request: Request) -> Response:
        """Create an adapter."""
        fields = self.read(shapes.NewAdapterSerializer)
        project = named_project(request, fields.pop("project"), Scope.PUBLISH)
        return self.write(models.Adapter.create(project=project, by=actor_of(request), **fields), 201)

    @extend_schema(request=shapes.AdapterChangeSerializer, responses=shapes.AdapterSerializer)
    def partial_update(self, request: Request, slug: str) -> Response:
        """Change an adapter's description and tags."""
        adapter = self.get_object()
        changes = self.read(shapes.AdapterChangeSerializer)
        adapter.describe(by=actor_of(request), expected=wanted_tag(request), **changes)
        return self.write(adapter)


class VersionViewSet(Reading, VersionEvidence, VersionTransfers):
    """Immutable versions of one adapter."""

    queryset = models.AdapterVersion.objects.select_related("adapter__project", "adapter__base_model")
    serializer_class = shapes.VersionSerializer
    takes_files = ("create",)
    project_path = "adapter__project"
    lookup_field = "number"
    lookup_value_regex = r"\d+"
    filters = {"status": "status", "method": "method", "digest": "digest"}
    scopes = {
        "create": Scope.PUBLISH,
        "archive": Scope.PUBLISH,
        "export": Scope.READ,
        "download": Scope.READ,
        **EVIDENCE,
        **TRANSFERS,
    }

    def get_queryset(self) -> Any:
        """Return the versions of the adapter in the URL."""
        if getattr(self, "action", None) == "list" and not getattr(self, "swagger_fake_view", False):
            # Filter by the adapter's key: by slug, Postgres would sort all its versions to get one page.
            return self.adapter().versions.all()
        rows = super().get_queryset()
        return rows if getattr(self, "swagger_fake_view", False) else rows.filter(adapter=self.adapter())

    def adapter(self) -> models.Adapter:
        """Return the adapter in the URL, if the caller sees it."""
        view = AdapterViewSet(request=self.request, kwargs=self.kwargs, action=self.action, format_kwarg=None)
        view.scopes = self.scopes
        adapter: models.Adapter = view.get_object()
        return adapter

    @extend_schema(request={"multipart/form-data": shapes.UploadSerializer}, responses={201: shapes.VersionSerializer})
    def create(self, request: Request, slug: str) -> Response:
        """Publish an adapter that was trained elsewhere.

        The version is `checking` until its numbers are read, then `ready`.
        """
        files = self.read(shapes.UploadSerializer)
        adapter = self.adapter()
        with scratch() as place:
            folder = receive(adapter, files, place / "given")
            folder = exports.folded(adapter, folder) if files["fold"] else folder
            version = models.AdapterVersion.publish(
                adapter, folder, method="upload", by=actor_of(request), foreign=True, may_move=True
            )
        return self.write(version, 201)

    @extend_schema(request=shapes.ReasonSerializer)
    @action(detail=True, methods=["post"])
    def archive(self, request: Request, slug: str, number: str) -> Response:
        """Archive the version: take it out of use."""
        version = self.get_object()
        version.archive(by=actor_of(request), **self.read(shapes.ReasonSerializer))
        return self.write(version)

    @extend_schema(responses={(200, "application/zip"): OpenApiTypes.BINARY})
    @action(detail=True)
    def download(self, request: Request, slug: str, number: str) -> FileResponse:
        """Return the files of the version as they were published, in a ZIP."""
        version = self.get_object()
        observe(Tag.WEIGHTS_READ, by=actor_of(request), project=version.adapter.project, resource=request.path)
        return as_zip(exports.download(version), version.served_name)

    @extend_schema(
        parameters=[
            OpenApiParameter("format", enum=[*exports.Format], description="Default: peft."),
            OpenApiParameter("dtype", enum=[*exports.Dtype], description="Default: fp32, which loses nothing."),
        ],
        responses={(200, "application/zip"): OpenApiTypes.BINARY},
    )
    @action(detail=True, content_negotiation_class=FormatIsNoRenderer)
    def export(self, request: Request, slug: str, number: str) -> FileResponse:
        """Return the adapter for other engines, in a ZIP.

        The format `portable` has one rank and one scale, so that it is right in every engine.
        """
        version = self.get_object()
        form = choice(request, "format", exports.Format, exports.Format.PEFT)
        dtype = choice(request, "dtype", exports.Dtype, exports.Dtype.FP32)
        observe(Tag.WEIGHTS_READ, by=actor_of(request), project=version.adapter.project, resource=request.path)
        return as_zip(exports.export(version, form, dtype), f"{version.served_name}-{form}-{dtype}")


def choice(request: Request, name: str, choices: type[StrEnum], default: StrEnum) -> Any:
    """Return a query parameter that must be one of the choices. Raises Invalid."""
    value = request.query_params.get(name, default)
    if value not in list(choices):
        raise Invalid(f"{name} is one of {', '.join(choices)}, not {value[:50]!r}.", field=name)
    return choices(value)


def as_zip(archive: IO[bytes], name: str) -> FileResponse:
    """Return the archive as a download."""
    return FileResponse(archive, as_attachment=True, filename=f"{name}.zip", content_type="application/zip")


def receive(adapter: models.Adapter, files: dict[str, Any], folder: Path) -> Path:
    """Put the adapter's files into a new folder: from the request, from an upload by link, or from the inbox.

    The files get fixed names: a client's file name never becomes a path.
    """
    folder.mkdir()
    if files["upload"]:
        take(files["upload"], adapter, folder)
        return folder
    if files["folder"]:
        take_folder(files["folder"], adapter.project, folder)
        return folder
    write_upload(files["adapter_model"], folder / "adapter_model.safetensors")
    write_upload(files["adapter_config"], folder / "adapter_config.json")
    return folder


def write_upload(upload: UploadedFile[bytes], path: Path) -> None:
    """Store an uploaded file at `path`; a large one, which is on disk already, is moved if it is on the same disk."""
    if isinstance(upload, TemporaryUploadedFile) and is_on_disk_of(path, upload.temporary_file_path()):
        upload.flush()
        os.rename(upload.temporary_file_path(), path)
        path.chmod(0o644)
        return
    with path.open("wb") as target:
        for chunk in upload.chunks():
            target.write(chunk)


def is_on_disk_of(path: Path, other: str) -> bool:
    """Return True if both paths lie on one file system."""
    return os.stat(path.parent).st_dev == os.stat(other).st_dev


class ClusterViewSet(Named):
    """Clusters: replicas behind one router."""

    queryset = models.Cluster.objects.select_related("project", "base_model")
    serializer_class = shapes.ClusterSerializer
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

    @extend_schema(request=shapes.NewClusterSerializer, responses={201: shapes.ClusterSerializer})
    def create(self, request: Request) -> Response:
        """Create a cluster."""
        fields = self.read(shapes.NewClusterSerializer)
        project = named_project(request, fields.pop("project"), Scope.OPERATE)
        return self.write(models.Cluster.create(project=project, by=actor_of(request), **fields), 201)

    @extend_schema(responses=shapes.GrantSerializer(many=True))
    @action(detail=True, pagination_class=None)
    def grants(self, request: Request, slug: str) -> Response:
        """List the grants of the cluster to other projects, newest first, withdrawn ones included."""
        return Response(shapes.GrantSerializer(self.get_object().grants.all(), many=True).data)

    @extend_schema(request=shapes.NewGrantSerializer, responses={201: shapes.GrantSerializer})
    @grants.mapping.post
    def grant(self, request: Request, slug: str) -> Response:
        """Grant the cluster to another project, which accepts by putting an alias on it.

        The answer is the same whether a project of this slug exists or not.
        """
        granted = self.get_object().grant(by=actor_of(request), **self.read(shapes.NewGrantSerializer))
        return Response(shapes.GrantSerializer(granted).data, 201)

    @extend_schema(request=shapes.WithdrawnGrantSerializer, responses=shapes.GrantSerializer)
    @action(detail=True, methods=["post"], url_path="grants/withdraw")
    def withdraw(self, request: Request, slug: str) -> Response:
        """Withdraw a grant: the replicas unload the project's versions, and its requests go there no more."""
        granted = self.get_object().withdraw(by=actor_of(request), **self.read(shapes.WithdrawnGrantSerializer))
        return Response(shapes.GrantSerializer(granted).data)

    @extend_schema(responses=shapes.ReplicaStateSerializer(many=True))
    @action(detail=True, pagination_class=None)
    def state(self, request: Request, slug: str) -> Response:
        """Return the desired and the observed state of each replica."""
        return Response(cluster_state(self.get_object()))


class ReplicaViewSet(Reading):
    """Replicas: the engine processes of clusters."""

    queryset = models.Replica.objects.select_related("cluster__project")
    serializer_class = shapes.ReplicaSerializer
    project_path = "cluster__project"
    filters = {"project": "cluster__project__slug", "cluster": "cluster__slug", "is_healthy": "is_healthy"}
    scopes = {"create": Scope.OPERATE}

    @extend_schema(request=shapes.NewReplicaSerializer, responses={201: shapes.ReplicaSerializer})
    def create(self, request: Request) -> Response:
        """Add a replica to a cluster."""
        fields = self.read(shapes.NewReplicaSerializer)
        cluster = named_record(self, models.Cluster, "slug", fields["cluster"], Scope.OPERATE, "cluster")
        return self.write(cluster.add_replica(url=fields["url"], by=actor_of(request)), 201)


def named_record(view: ProjectViewSet, model: type[Model], name: str, value: str, scope: str, field: str) -> Any:
    """Return the object that a request body names; require the scope in its project. Raises Invalid if not visible."""
    path = "adapter__project" if model is models.AdapterVersion else "project"
    visible = seen_in(model._default_manager.select_related(path), path, view.request)
    live = visible.filter(**{f"{path}__archived_at": None})
    record: Any = live.filter(served_name=value).first() if name == "served_name" else named(live, path, name, value)
    if record is None:
        raise Invalid(f"There is no {field} {value!r} that you can see.", field=field, code=f"unknown_{field}")
    require_scope(view.request, record.project, scope)
    return record


def cluster_for(request: Request, project: Project, reference: str) -> models.Cluster:
    """Return the cluster that an alias of the project is to be served on. Raises Invalid for an unknown one.

    Another project's cluster is named with its project, `infra.gpu`, unless the caller sees it or it serves this
    project already: whoever grants a cluster cannot make a caller take it by mistake.
    """
    owner, _ = parts_of(reference)
    clusters = models.Cluster.objects.select_related("project", "base_model")
    seen = seen_in(clusters, "project", request) | clusters.serving(project)
    choices = [clusters.filter(project=project), clusters.offered_to(project) if owner else seen]
    for rows in choices:
        cluster: models.Cluster | None = named(rows.distinct(), "project", "slug", reference)
        if cluster:
            return cluster
    field = "cluster"
    raise Invalid(f"There is no {field} {reference!r} for {project}.", field=field, code=f"unknown_{field}")


class AliasViewSet(Named):
    """Aliases: public names that applications send as `model`."""

    # A version's ranks are hundreds of numbers, which the alias' response does not contain.
    queryset = models.Alias.objects.select_related("project", "cluster", "version", "default_of").defer(
        "version__ranks", "version__config", "version__metrics", "version__lineage"
    )
    serializer_class = shapes.AliasSerializer
    pagination_class = ByName
    lookup_field = "name"
    filters = {"project": "project__slug", "cluster": "cluster__slug", "version": "version__served_name"}
    scopes = {"create": Scope.OPERATE, "partial_update": Scope.OPERATE, "move": Scope.OPERATE, "history": Scope.READ}

    def version(self, served_name: str, field: str = "version") -> models.AdapterVersion:
        """Return the version with this served name, if the caller sees it. Raises Invalid."""
        version: models.AdapterVersion = named_record(
            self, models.AdapterVersion, "served_name", served_name, Scope.READ, field
        )
        return version

    @extend_schema(request=shapes.NewAliasSerializer, responses={201: shapes.AliasSerializer})
    def create(self, request: Request) -> Response:
        """Create an alias that serves a version."""
        fields = self.read(shapes.NewAliasSerializer)
        project = named_project(request, fields["project"], Scope.OPERATE)
        cluster = cluster_for(request, project, fields["cluster"])
        alias = models.Alias.create(
            project=project,
            name=fields["name"],
            cluster=cluster,
            version=self.version(fields["version"]),
            policy=fields["policy"],
            default=fields["default"],
            by=actor_of(request),
        )
        return self.write(alias, 201)

    @extend_schema(request=shapes.PolicySerializer, responses=shapes.AliasSerializer)
    def partial_update(self, request: Request, name: str) -> Response:
        """Change the policy of the alias, or let the bare name of its adapter stand for it."""
        alias, fields, by = self.get_object(), self.read(shapes.PolicySerializer), actor_of(request)
        tag, reason = wanted_tag(request), fields["reason"]
        with transaction.atomic():
            if "default" in fields:
                alias.set_default(fields["default"], by=by, reason=reason, expected_tag=tag)
            if "policy" in fields:
                alias.set_policy(fields["policy"], by=by, reason=reason, expected_tag=tag)
        return self.write(alias)

    @extend_schema(request=shapes.MoveSerializer)
    @action(detail=True, methods=["post"])
    def move(self, request: Request, name: str) -> Response:
        """Serve another version at once, if the alias still serves the expected one."""
        alias = self.get_object()
        fields = self.read(shapes.MoveSerializer)
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
        responses=shapes.AliasMoveSerializer(many=True),
    )
    @action(detail=True, pagination_class=None)
    def history(self, request: Request, name: str) -> Response:
        """List every move of the alias, newest first; with `at`, only the move that served at that time."""
        moves = self.get_object().moves.select_related("version")
        if at := request.query_params.get("at"):
            moves = moves.filter(at__lte=moment_of(at))[:1]
        return Response(shapes.AliasMoveSerializer(moves, many=True).data)


def moment_of(text: str) -> datetime:
    """Parse a time with its zone and return it in UTC, since Postgres accepts fewer zones. Raises Invalid."""
    try:
        if (moment := parse_datetime(text)) and moment.tzinfo:
            return moment.astimezone(UTC)
    except (ValueError, OverflowError):
        pass
    raise Invalid("`at` must be a time with time zone, e.g. 2026-11-23T12:00:00Z.", field="at")


class ResponseViewSet(ProjectViewSet, Retrieving):
    """Responses to requests, each with the version that answered."""

    queryset = models.Response.objects.select_related("project", "version")
    serializer_class = shapes.ResponseSerializer
