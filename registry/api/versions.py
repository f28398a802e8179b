"""REST: versions of an adapter: upload, read, archive, download and export."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any, cast

from django.http import FileResponse
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.negotiation import DefaultContentNegotiation
from rest_framework.request import Request
from rest_framework.response import Response

from adapterhub.api.permissions import actor_of
from adapterhub.audit.access_log import observe
from adapterhub.audit.tags import Tag
from adapterhub.core.errors import Invalid
from adapterhub.core.tenancy import Scope
from adapterhub.workspace import scratch
from registry.adapter_files.reducible import is_reducible
from registry.adapter_files.served_config import CONFIG
from registry.adapter_files.tensor_names import WEIGHTS
from registry.api.adapters import AdapterViewSet
from registry.api.evidence import SCOPES as EVIDENCE
from registry.api.evidence import VersionEvidence
from registry.api.fields import ReasonSerializer, slug_of
from registry.api.intake_check import CheckSerializer, HeaderSerializer
from registry.api.resources import Reading
from registry.api.transfers import SCOPES as TRANSFERS
from registry.api.transfers import VersionTransfers, take
from registry.exports import zip_export as exports
from registry.models import Adapter, AdapterVersion
from registry.uploads.inbox import NAME, take_folder
from registry.uploads.received_files import write_upload
from registry.uploads.receiving import Received, publish, receive


class VersionSerializer(serializers.ModelSerializer[AdapterVersion]):
    """A version of an adapter: its served name, its digests, its ranks, and the state of its check."""

    adapter = slug_of()

    class Meta:
        model = AdapterVersion
        fields = [
            "adapter",
            "number",
            "served_name",
            "status",
            "message",
            "digest",
            "signature",
            "base_digest",
            "tokenizer_digest",
            "template_digest",
            "config",
            "method",
            "max_rank",
            "ranks",
            "parameters",
            "size_bytes",
            "metrics",
            "lineage",
            "report",
            "created_at",
        ]


class UploadSerializer(serializers.Serializer[Any]):
    """The files of a version, or the place from which the server takes them."""

    adapter_model = serializers.FileField(required=False, help_text="adapter_model.safetensors")
    adapter_config = serializers.FileField(required=False, help_text="adapter_config.json")
    archive = serializers.FileField(
        required=False, help_text="Instead of the files: a zip that holds them, in a folder or with others."
    )
    upload = serializers.CharField(
        default="", max_length=500, help_text="Instead of the files: the upload from uploads/."
    )
    folder = serializers.RegexField(
        NAME, default="", allow_blank=True, help_text="Instead of the files: a folder in the project's inbox."
    )
    fold = serializers.BooleanField(default=False, help_text="Fold different effective scales into B.")
    keep = serializers.BooleanField(
        default=False,
        help_text="Store an adapter that PEFT computes and engines cannot serve (DoRA, modules_to_save, LoHa ...): its "
        "version is `unservable`, and can be reduced to a plain LoRA.",
    )
    confirm_base = serializers.CharField(
        default="",
        allow_blank=True,
        max_length=2000,
        help_text="The reason why the adapter fits this base model although its configuration names another. "
        "It is kept with the version and in the audit trail.",
    )
    source_sha256 = serializers.RegexField(
        r"^[0-9a-f]{64}$", default="", allow_blank=True, help_text="sha256 of the weights before they were converted."
    )
    conversions = serializers.CharField(
        default="", allow_blank=True, max_length=10_000, help_text="What the sender converted, a line each."
    )

    def validate(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Check that files, an archive, an upload by links or a folder is given, and return the fields.

        Raises ValidationError.
        """
        missing = [name for name in ("adapter_model", "adapter_config") if name not in fields]
        if missing and not (fields["upload"] or fields["folder"] or "archive" in fields):
            raise serializers.ValidationError(
                dict.fromkeys(missing, "Send the file, an archive, an upload, or a folder.")
            )
        return fields


class FormatIsNoRenderer(DefaultContentNegotiation):
    """Content negotiation without `?format=`, which names the export format here and not a renderer."""

    settings = cast(Any, SimpleNamespace(URL_FORMAT_OVERRIDE=None))


class VersionViewSet(Reading, VersionEvidence, VersionTransfers):
    """Immutable versions of one adapter."""

    queryset = AdapterVersion.objects.select_related("adapter__project", "adapter__base_model")
    serializer_class = VersionSerializer
    takes_files = ("create", "check")
    project_path = "adapter__project"
    lookup_field = "number"
    lookup_value_regex = r"\d{1,9}"
    filters = {"status": "status", "method": "method", "digest": "digest"}
    scopes = {
        "create": Scope.PUBLISH,
        "check": Scope.PUBLISH,
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

    def adapter(self) -> Adapter:
        """Return the adapter in the URL, if the caller sees it and has the scope of the action in its project."""
        # The filters of this list are of versions: those of adapters would refuse them.
        action = "retrieve" if self.action == "list" else self.action
        view = AdapterViewSet(request=self.request, kwargs=self.kwargs, action=action, format_kwarg=None)
        view.scopes = self.scopes
        adapter: Adapter = view.get_object()
        return adapter

    @extend_schema(request={"multipart/form-data": UploadSerializer}, responses={201: VersionSerializer})
    def create(self, request: Request, slug: str) -> Response:
        """Publish an adapter that was trained elsewhere.

        The version is `checking` until its weights have been scanned, then `ready` or `rejected`.
        """
        files = self.read(UploadSerializer)
        adapter = self.adapter()
        with scratch() as place:
            received = receive_sent(adapter, files, place / "given")
            version = publish(
                adapter,
                received.folder,
                fold=files["fold"],
                keep=files["keep"],
                confirmation=files["confirm_base"],
                lineage=converted_from(files, received.notes),
                by=actor_of(request),
            )
        return self.write(version, 201)

    @extend_schema(request={"multipart/form-data": HeaderSerializer}, responses=CheckSerializer)
    @action(detail=False, methods=["post"], pagination_class=None)
    def check(self, request: Request, slug: str) -> Response:
        """Check an adapter before its upload and return every fault and notice at once. Nothing is stored."""
        files = self.read(HeaderSerializer)
        inspection = self.adapter().inspect(
            files["adapter_config"].read(),
            [(files["header"].read(), files["size"])],
            any_scale=files["fold"],
            confirmation=files["confirm_base"],
        )
        return Response(inspection.as_dict() | {"reducible": is_reducible(inspection)})

    @extend_schema(request=ReasonSerializer)
    @action(detail=True, methods=["post"])
    def archive(self, request: Request, slug: str, number: str) -> Response:
        """Archive the version: it can no longer be served."""
        version = self.get_object()
        version.archive(by=actor_of(request), **self.read(ReasonSerializer))
        return self.write(version)

    @extend_schema(responses={(200, "application/zip"): OpenApiTypes.BINARY})
    @action(detail=True)
    def download(self, request: Request, slug: str, number: str) -> FileResponse:
        """Return the files of the version as they were published, in a ZIP.

        The request is recorded as a read of the weights.
        """
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
        """Return the adapter for other engines, in a ZIP. The request is recorded as a read of the weights.

        The format `portable` has one rank and one scale, so that every engine computes it correctly.
        """
        version = self.get_object()
        form = choice(request, "format", exports.Format, exports.Format.PEFT)
        dtype = choice(request, "dtype", exports.Dtype, exports.Dtype.FP32)
        observe(Tag.WEIGHTS_READ, by=actor_of(request), project=version.adapter.project, resource=request.path)
        return as_zip(exports.export(version, form, dtype), f"{version.served_name}-{form}-{dtype}")


def converted_from(files: dict[str, Any], notes: Sequence[str] = ()) -> dict[str, Any]:
    """Return the lineage of an upload: the source's sha256, each line of `conversions`, and the server's notes.

    It is empty for an adapter that nobody converted. `files` are the validated fields of UploadSerializer.
    """
    lines = [*files["conversions"].splitlines(), *notes]
    return {"source_sha256": files["source_sha256"], "conversions": lines} if lines or files["source_sha256"] else {}


def choice(request: Request, name: str, choices: type[StrEnum], default: StrEnum) -> Any:
    """Return the query parameter `name` as a member of `choices`, or the default.

    Raises Invalid for any other value.
    """
    value = request.query_params.get(name, default)
    if value not in list(choices):
        raise Invalid(f"{name} is one of {', '.join(choices)}, not {value[:50]!r}.", field=name)
    return choices(value)


def as_zip(archive: IO[bytes], name: str) -> FileResponse:
    """Return the open ZIP file as a download named `name`.zip."""
    return FileResponse(archive, as_attachment=True, filename=f"{name}.zip", content_type="application/zip")


def receive_sent(adapter: Adapter, files: dict[str, Any], folder: Path) -> Received:
    """Put the adapter's files into the new folder `folder`: from the request, a zip, an upload by link, or the inbox.

    `files` are the validated fields of UploadSerializer. The files get fixed names: a client's file name never becomes
    a path. Raises Invalid if the files cannot be taken.
    """
    if "archive" in files:
        return receive([files["archive"]], folder)
    folder.mkdir()
    if files["upload"]:
        take(files["upload"], adapter, folder)
    elif files["folder"]:
        take_folder(files["folder"], adapter.project, folder)
    else:
        write_upload(files["adapter_model"], folder / WEIGHTS)
        write_upload(files["adapter_config"], folder / CONFIG)
    return Received(folder)
