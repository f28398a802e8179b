"""The REST resource of the audit trail, read only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

from django.db.models import Model
from django.http import FileResponse, StreamingHttpResponse
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import mixins, serializers
from rest_framework.request import Request
from rest_framework.response import Response

from adapterhub.api.permissions import actor_of, named_project, projects_with
from adapterhub.api.views import ProjectViewSet, Retrieving
from adapterhub.audit.access_log import observe
from adapterhub.audit.export import bundle_archive, csv_lines, export_lines
from adapterhub.audit.external.proof import judged
from adapterhub.audit.models import AuditEvent
from adapterhub.audit.pagination import Events
from adapterhub.audit.tags import Tag
from adapterhub.core.errors import Invalid
from adapterhub.core.tenancy import Scope, Tenant
from adapterhub.scratch_files import temporary_file
from adapterhub.workspace import place_for_child, work_folder


class AuditEventSerializer(serializers.ModelSerializer[AuditEvent]):
    """An audit event with its hash."""

    project = serializers.SlugRelatedField[Model](slug_field="slug", read_only=True, allow_null=True)
    hash = serializers.SerializerMethodField()

    class Meta:
        model = AuditEvent
        fields = [
            "id",
            "project",
            "sequence",
            "at",
            "tag",
            "actor_name",
            "auth_method",
            "object_type",
            "object_id",
            "object_name",
            "before",
            "after",
            "reason",
            "evidence",
            "request_id",
            "hash",
        ]

    def get_hash(self, event: AuditEvent) -> str:
        """Return the event's hash in hexadecimal."""
        return bytes(event.hash).hex()


class FaultSerializer(serializers.Serializer[Any]):
    """A fault of the chain at a sequence."""

    sequence = serializers.IntegerField()
    fault = serializers.CharField()


class ProofSerializer(serializers.Serializer[Any]):
    """Proof of a chain by a witness outside this installation: up to which event, since when, or why there is none."""

    witness = serializers.CharField()
    sequence = serializers.IntegerField(help_text="The last event that it has proof of; 0 if none.")
    at = serializers.DateTimeField(allow_null=True)
    trouble = serializers.CharField(help_text="Why it proves nothing now.")


class VerdictSerializer(serializers.Serializer[Any]):
    """The result of a verification."""

    project = serializers.CharField()
    ok = serializers.BooleanField(help_text="No fault. Whoever rules the key and the database can forge what follows.")
    events = serializers.IntegerField()
    faults = FaultSerializer(many=True)
    signed = serializers.IntegerField(help_text="The event of the newest signed checkpoint.")
    witnessed = serializers.IntegerField(help_text="The last event of which a witness outside has proof.")
    by_chain_alone = serializers.IntegerField(help_text="The events after it.")
    proofs = ProofSerializer(many=True)


EXPORTS = {"jsonl": ("application/jsonl", export_lines), "csv": ("text/csv; charset=utf-8", csv_lines)}
KINDS = [*EXPORTS, "bundle"]
AS = OpenApiParameter(
    "as", str, enum=KINDS, description="jsonl (the default), csv, or bundle: a signed ZIP that can be verified."
)
PROJECT = OpenApiParameter("project", str, required=True, description="Slug of the project.")


class AuditViewSet(ProjectViewSet, mixins.ListModelMixin, Retrieving):
    """Events of the audit trail (who changed what, when and why), the check of a project's chain, and its export.

    No event can be changed here; each list, retrieval and export is itself recorded. The check asks the witnesses.
    """

    queryset = AuditEvent.objects.select_related("project").defer("canonical")
    serializer_class = AuditEventSerializer
    pagination_class = Events
    filters = {
        "project": "project__slug",
        "tag": "tag",
        "object_type": "object_type",
        "object_id": "object_id",
        "actor_name": "actor_name",
        "request_id": "request_id",
        "after": "at__gte",
        "before": "at__lt",
    }
    scopes = dict.fromkeys(("list", "retrieve", "verify", "export"), Scope.AUDIT)

    def list(self, request: Request, *args: object, **kwargs: object) -> Response:
        """List events of the projects in which the caller has the scope audit, or of `project` alone, newest first."""
        if slug := request.query_params.get("project"):
            self.queryset = self.queryset.filter(project=named_project(request, slug, Scope.AUDIT))
        else:
            self.queryset = self.queryset.filter(project__in=projects_with(request, Scope.AUDIT))
        observe(Tag.AUDIT_READ, by=actor_of(request), project=None, resource=request.get_full_path())
        return super().list(request, *args, **kwargs)

    def retrieve(self, request: Request, *args: object, **kwargs: object) -> Response:
        """Return one event. The reading is recorded."""
        event = self.get_object()
        observe(Tag.AUDIT_READ, by=actor_of(request), project=event.project, resource=request.path)
        return self.write(event)

    @extend_schema(parameters=[PROJECT], responses=VerdictSerializer)
    def verify(self, request: Request) -> Response:
        """Verify the project's hash chain: each fault, and up to which event a witness outside has proof of it."""
        project = named_project(request, request.query_params.get("project", ""), Scope.AUDIT)
        with place_for_child(project.pk):
            verdict = judged(project, [])
        entries = [{"sequence": fault.sequence, "fault": fault.kind} for fault in verdict.faults]
        verdict_fields = {
            "project": project.slug,
            "ok": not entries,
            "events": verdict.events,
            "faults": entries,
            "signed": verdict.signed,
            "witnessed": verdict.witnessed,
            "by_chain_alone": verdict.by_chain_alone,
            "proofs": verdict.proofs,
        }
        return Response(VerdictSerializer(verdict_fields).data)

    @extend_schema(parameters=[PROJECT, AS], responses={(200, "application/jsonl"): OpenApiTypes.BINARY})
    def export(self, request: Request) -> StreamingHttpResponse:
        """Export the project's chain, which is recorded.

        As JSON lines of the canonical bytes as they were hashed and both hashes, or with `as` as `csv`, or as `bundle`,
        a ZIP file of everything that an outsider needs to verify it.
        """
        project = named_project(request, request.query_params.get("project", ""), Scope.AUDIT)
        kind = request.query_params.get("as", "jsonl")
        if kind not in KINDS:
            raise Invalid("`as` must be jsonl, csv or bundle.", field="as")
        observe(Tag.AUDIT_EXPORTED, by=actor_of(request), project=project, resource=request.path, evidence={"as": kind})
        if kind == "bundle":
            return bundle(project)
        content_type, lines = EXPORTS[kind]
        response = StreamingHttpResponse(in_a_place(project, lines(project)), content_type=content_type)
        response["Content-Disposition"] = f'attachment; filename="audit-{project.slug}.{kind}"'
        return response


def in_a_place(project: Tenant, lines: Iterator[str]) -> Iterator[str]:
    """Return the lines as a stream that counts among the project's concurrent exports until it is sent.

    Each stream holds a connection of the database, and may be read as slowly as its caller likes. Raises TooMany if too
    many exports or checks of the project run at once.
    """
    place = ExitStack()
    place.enter_context(place_for_child(project.pk))

    def stream() -> Iterator[str]:
        with place:
            yield from lines

    return stream()


def bundle(project: Tenant) -> FileResponse:
    """Return a response with the project's bundle as a ZIP file: events, checkpoints, public key and signed manifest.

    Raises OutOfSpace, and TooMany if too many exports or checks of the project run at once.
    """
    with place_for_child(project.pk), temporary_file(work_folder()) as archive:
        bundle_archive(project, archive)
    return FileResponse(archive, as_attachment=True, filename=f"audit-{project.slug}.zip")
