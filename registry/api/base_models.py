"""REST: base models."""

from __future__ import annotations

from typing import Any

from django.db import transaction
from drf_spectacular.utils import extend_schema, extend_schema_field
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from adapterhub.api.permissions import actor_of, named_project, projects_of, require_admin_somewhere
from adapterhub.core.errors import Invalid
from adapterhub.core.tenancy import Scope
from registry.api.resources import BySlug, Reading
from registry.base_models import variants
from registry.models import AdapterVersion, BaseModel

NUMBERS = {"type": "object", "properties": {name: {"type": "number"} for name in ("mean", "low", "high")}}
MEASUREMENT = {
    "type": "object",
    "nullable": True,
    "properties": {
        "loss": {"type": "number", "description": "Held-out loss of the variant, in nats per token."},
        "loss_base": {"type": "number", "description": "That of its base on the same text."},
        "difference": {**NUMBERS, "description": "`loss` - `loss_base`, with its 95 % interval."},
        "with_version": {
            "type": "object",
            "nullable": True,
            "description": "The same with an adapter version on both: loss, loss_base and difference.",
            "additionalProperties": {},
        },
        "tokens": {"type": "integer"},
        "rows": {"type": "integer"},
        "measured_at": {"type": "string", "format": "date-time"},
    },
}


class BaseModelSerializer(serializers.ModelSerializer[BaseModel]):
    """A base model with its digests, its size, the state of its check, and the model of which it is a variant."""

    variant_of = serializers.SlugRelatedField[BaseModel](slug_field="slug", read_only=True, allow_null=True)
    variants = serializers.SlugRelatedField[BaseModel](slug_field="slug", read_only=True, many=True)
    measurement = serializers.SerializerMethodField()

    @extend_schema_field(MEASUREMENT)
    def get_measurement(self, model: BaseModel) -> Any:
        """Return what the variant costs, as last measured; null for a variant that was not measured, and for others."""
        return model.measurement

    class Meta:
        model = BaseModel
        fields = [
            "slug",
            "source",
            "revision",
            "also_named",
            "variant_of",
            "variants",
            "measurement",
            "status",
            "message",
            "digest",
            "tokenizer_digest",
            "template_digest",
            "parameters",
            "size_bytes",
            "archived_at",
            "created_at",
        ]


class NewBaseModelSerializer(serializers.Serializer[Any]):
    """The base model to register: from the models folder, a hub or a version of an adapter."""

    slug = serializers.SlugField(max_length=50)
    source = serializers.RegexField(  # type: ignore[assignment]  # DRF takes it off the class
        r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?$",
        max_length=200,
        required=False,
        help_text="A folder in the models folder, or a hub id.",
    )
    revision = serializers.RegexField(r"^[\w.-]*$", max_length=100, required=False, allow_blank=True, default="")
    version = serializers.CharField(
        max_length=160,
        required=False,
        help_text="Instead of a source: the served name of a version, to be served whole. A full training's checkpoint "
        "is taken as it is; a LoRA is merged into its base model.",
    )

    def validate(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Return the fields. Raises ValidationError unless exactly one of `source` and `version` is given."""
        if ("source" in fields) == ("version" in fields):
            raise serializers.ValidationError({"source": "Name either a source or a version."})
        return fields


class BaseModelChangeSerializer(serializers.Serializer[Any]):
    """The fields of a base model that can change."""

    also_named = serializers.ListField(
        child=serializers.CharField(max_length=300),
        max_length=100,
        required=False,
        help_text="Further names by which adapters may name it: copies of the same weights, quantised ones included.",
    )
    variant_of = serializers.SlugRelatedField(
        slug_field="slug",
        queryset=BaseModel.objects.all(),
        required=False,
        allow_null=True,
        help_text="The base model of which it is a copy with other numbers, such as fewer bits: its clusters then "
        "serve the adapters of that one. null revokes it, which is refused while versions are served so.",
    )
    reason = serializers.CharField(max_length=2000)

    def validate(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Return the fields. Raises ValidationError unless one is given that can change."""
        if not {"also_named", "variant_of"} & fields.keys():
            raise serializers.ValidationError({"also_named": "Give also_named or variant_of."})
        return fields


class BaseModelViewSet(Reading):
    """Base models. They belong to the installation, so every project may train on them."""

    queryset = BaseModel.objects.select_related("variant_of").prefetch_related("variants", "variant_measurements")
    serializer_class = BaseModelSerializer
    pagination_class = BySlug
    lookup_field = "slug"
    filters = {"status": "status", "source": "source"}
    scopes = {"create": Scope.ADMIN, "partial_update": Scope.ADMIN}

    def get_queryset(self) -> Any:
        """Return all base models, which every project may use."""
        return self.queryset.all()

    def project_of(self, record: Any) -> None:
        """Return None: a base model belongs to the installation, so the actions that change one check for an admin."""

    @extend_schema(request=NewBaseModelSerializer, responses={202: BaseModelSerializer})
    def create(self, request: Request) -> Response:
        """Register a folder, a hub id, or a whole version as a base model.

        The call returns at once with 202; `status` says when the base model is ready.
        """
        fields = self.read(NewBaseModelSerializer)
        require_admin_somewhere(request)
        if "version" in fields:
            version = whole_version(request, fields["version"])
            model = BaseModel.register_version(slug=fields["slug"], version=version, by=actor_of(request))
        else:
            model = BaseModel.register(by=actor_of(request), **fields)
        return self.write(model, 202)

    @extend_schema(request=BaseModelChangeSerializer, responses=BaseModelSerializer)
    def partial_update(self, request: Request, slug: str) -> Response:
        """Replace the further names of the base model, or declare or revoke that it is a variant of another.

        A variant's clusters serve the adapters of its base, never the other way round. Its shapes, tokenizer and chat
        template have to be those of its base.
        """
        fields = self.read(BaseModelChangeSerializer)
        require_admin_somewhere(request)
        model = self.get_object()
        what: dict[str, Any] = {"reason": fields["reason"], "by": actor_of(request)}
        with transaction.atomic():
            if "also_named" in fields:
                model.declare_names(fields["also_named"], **what)
            if fields.get("variant_of"):
                variants.declare(model, fields["variant_of"], **what)
            elif "variant_of" in fields:
                variants.revoke(model, seen=projects_of(request), **what)
        return self.write(self.get_object())


def whole_version(request: Request, served_name: str) -> AdapterVersion:
    """Return the version, by its served name, that is to become a base model.

    Raises Invalid if the caller does not see it, and NotAllowed unless the caller is an admin of its project, because
    afterwards all projects can use its weights.
    """
    visible = AdapterVersion.objects.filter(adapter__project__in=projects_of(request))
    version = visible.select_related("adapter__project", "adapter__base_model").filter(served_name=served_name).first()
    if version is None:
        raise Invalid(f"There is no version {served_name!r}.", field="version", code="unknown_version")
    named_project(request, version.project.slug, Scope.ADMIN)
    return version
