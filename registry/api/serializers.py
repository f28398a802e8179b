"""REST serializers of the registry."""

from __future__ import annotations

from ipaddress import IPv6Address
from math import isfinite
from typing import Any
from urllib.parse import urlsplit

from rest_framework import serializers

from adapterhub.api.parsers import BoundedJSONField
from adapterhub.core.references import REFERENCE_IN_BODY
from registry.evidence.lineage import approvals_of
from registry.experiments.guardrails import Kind
from registry.experiments.metrics import METRICS
from registry.models import (
    Adapter,
    AdapterVersion,
    Alias,
    AliasMove,
    BaseModel,
    Cluster,
    ClusterGrant,
    Replica,
    Response,
    Rollout,
)
from registry.models.feedback import Outcome
from registry.uploads.inbox import NAME


def slug_of(name: str = "slug", **options: Any) -> serializers.SlugRelatedField[Any]:
    """Return a read-only field that shows a related object by one of its fields."""
    return serializers.SlugRelatedField(slug_field=name, read_only=True, **options)


def reference(**options: Any) -> serializers.RegexField:
    """Return a field for a project's thing: `dora`, or `eu.dora` where two of the caller's projects have one."""
    return serializers.RegexField(REFERENCE_IN_BODY, max_length=101, **options)


class BaseModelSerializer(serializers.ModelSerializer[BaseModel]):
    """A base model."""

    class Meta:
        model = BaseModel
        fields = [
            "slug",
            "source",
            "revision",
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
    """The base model to register: from the models folder, a hub or a version."""

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
        """Check that one origin is named. Raises ValidationError."""
        if ("source" in fields) == ("version" in fields):
            raise serializers.ValidationError({"source": "Name either a source or a version."})
        return fields


class AdapterSerializer(serializers.ModelSerializer[Adapter]):
    """An adapter."""

    project = slug_of()
    base_model = slug_of()

    class Meta:
        model = Adapter
        fields = ["slug", "project", "base_model", "description", "tags", "archived_at", "created_at"]


class NewAdapterSerializer(serializers.Serializer[Any]):
    """The adapter to create."""

    project = serializers.SlugField()
    slug = serializers.SlugField(max_length=50)
    base_model = serializers.SlugRelatedField(slug_field="slug", queryset=BaseModel.objects.all())
    description = serializers.CharField(required=False, allow_blank=True, default="", max_length=10_000)
    tags = serializers.ListField(child=serializers.CharField(max_length=50), required=False, default=list)


class AdapterChangeSerializer(serializers.Serializer[Any]):
    """The fields of an adapter that can change."""

    description = serializers.CharField(required=False, allow_blank=True, max_length=10_000)
    tags = serializers.ListField(child=serializers.CharField(max_length=50), required=False)


class VersionSerializer(serializers.ModelSerializer[AdapterVersion]):
    """A version of an adapter."""

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
            "created_at",
        ]


class UploadSerializer(serializers.Serializer[Any]):
    """The files of a version, or the place where they are."""

    adapter_model = serializers.FileField(required=False, help_text="adapter_model.safetensors")
    adapter_config = serializers.FileField(required=False, help_text="adapter_config.json")
    upload = serializers.CharField(
        default="", max_length=500, help_text="Instead of the files: the upload from uploads/."
    )
    folder = serializers.RegexField(
        NAME, default="", allow_blank=True, help_text="Instead of the files: a folder in the project's inbox."
    )
    fold = serializers.BooleanField(default=False, help_text="Fold different effective scales into B.")

    def validate(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Check that both files or their place are named. Raises ValidationError."""
        missing = [name for name in ("adapter_model", "adapter_config") if name not in fields]
        if missing and not (fields["upload"] or fields["folder"]):
            raise serializers.ValidationError(dict.fromkeys(missing, "Send the file, an upload, or a folder."))
        return fields


class ReasonSerializer(serializers.Serializer[Any]):
    """A reason."""

    reason = serializers.CharField(max_length=2000)


class ClusterSerializer(serializers.ModelSerializer[Cluster]):
    """A cluster."""

    project = slug_of()
    base_model = slug_of()

    class Meta:
        model = Cluster
        fields = ["slug", "project", "base_model", "engine", "max_lora_rank", "max_loras", "created_at"]


class NewClusterSerializer(serializers.ModelSerializer[Cluster]):
    """The cluster to create."""

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
        fields = ["id", "cluster", "url", "is_healthy", "engine_version", "loaded", "refused", "message", "seen_at"]


class NewReplicaSerializer(serializers.Serializer[Any]):
    """The replica to add to a cluster."""

    cluster = reference()
    # A host of a private network is often a bare name, which URLField refuses.
    url = serializers.RegexField(r"^https?://([\w.-]+|\[[\da-fA-F:]+\])(:\d{1,5})?/?$", max_length=300)

    def validate_url(self, url: str) -> str:
        """Check the address' host and port. Raises ValidationError."""
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


class AliasSerializer(serializers.ModelSerializer[Alias]):
    """An alias."""

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
    """The alias to create."""

    project = serializers.SlugField()
    name = serializers.SlugField(max_length=50)
    cluster = reference(help_text="Of another project: `project.cluster`, when it is granted to this project.")
    version = serializers.CharField(max_length=200, help_text="Served name, e.g. eu.dora.v1-0123456789ab.")
    policy = serializers.DictField(required=False, default=dict)
    default = serializers.BooleanField(
        required=False, default=False, help_text="Whether the adapter's bare name stands for this alias."
    )


class PolicySerializer(serializers.Serializer[Any]):
    """A change of an alias: its policy, or whether it is its adapter's default."""

    policy = serializers.DictField(required=False)
    default = serializers.BooleanField(
        required=False, help_text="Whether the served adapter's bare name stands for this alias."
    )
    reason = serializers.CharField(max_length=2000, required=False, default="")

    def validate(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Require one of both."""
        if not fields.keys() & {"policy", "default"}:
            raise serializers.ValidationError({"policy": "Name policy or default."})
        return fields


class MoveSerializer(serializers.Serializer[Any]):
    """The version to move an alias to, and the one that the caller saw."""

    version = serializers.CharField(max_length=200)
    expected_version = serializers.CharField(max_length=200)
    reason = serializers.CharField(max_length=2000)


class AliasMoveSerializer(serializers.ModelSerializer[AliasMove]):
    """A move of an alias."""

    version = slug_of("served_name")

    class Meta:
        model = AliasMove
        fields = ["version", "at", "actor_name", "reason"]


class StepSerializer(serializers.Serializer[Any]):
    """A step of a rollout."""

    weight = serializers.FloatField(min_value=0, max_value=100)
    hold_s = serializers.IntegerField(min_value=0, required=False, default=0)
    min_samples = serializers.IntegerField(
        min_value=0, required=False, default=0, help_text="Users that each arm must have served since the start."
    )
    approval = serializers.BooleanField(required=False, default=False)
    shadow = serializers.FloatField(
        min_value=0,
        max_value=100,
        required=False,
        default=0,
        help_text="Percent of the requests that the candidate answers too, without anyone seeing it; only at weight 0.",
    )


class GuardrailSerializer(serializers.Serializer[Any]):
    """A metric that a rollout watches."""

    metric = serializers.ChoiceField(choices=list(METRICS))
    margin = serializers.FloatField(min_value=0, help_text="In the metric's unit: percentage points, or seconds.")
    kind = serializers.ChoiceField(
        choices=[kind.value for kind in Kind],
        default=Kind.GUARDRAIL.value,
        help_text="A bad guardrail rolls back, a bad signal pauses, goals decide promotion.",
    )
    level = serializers.FloatField(
        required=False, allow_null=True, help_text="0.95 is p95; only for metrics in seconds."
    )


class JudgeSerializer(serializers.Serializer[Any]):
    """Settings of the judge: it gets a sample of both arms' answers, with their questions."""

    instruction = serializers.CharField(max_length=2000, help_text="What makes an answer good.")
    sample = serializers.FloatField(min_value=0.01, max_value=100, help_text="Percent of the answers.")


class ChecksSerializer(serializers.Serializer[Any]):
    """Checks of an answer, which the routers make after they have sent the answer."""

    refusal = serializers.CharField(required=False, help_text="Regular expression that a refusal contains.")
    format = serializers.CharField(required=False, help_text="Regular expression that a correct answer contains.")
    schema = BoundedJSONField(required=False, help_text="JSON Schema that the JSON of a correct answer follows.")
    judge = JudgeSerializer(required=False)


class TargetingSerializer(serializers.Serializer[Any]):
    """Targeting of units, named as clients send them; only their hashes are kept."""

    allow = serializers.ListField(child=serializers.CharField(max_length=500), required=False, default=list)
    deny = serializers.ListField(child=serializers.CharField(max_length=500), required=False, default=list)
    holdout = serializers.FloatField(
        min_value=0,
        max_value=50,
        required=False,
        default=0,
        help_text="Percent of the units that no rollout of this alias touches.",
    )


class FeedbackSerializer(serializers.Serializer[Any]):
    """A person's judgement of an answer."""

    response_id = serializers.CharField(max_length=64)
    outcome = serializers.ChoiceField(choices=Outcome.choices, required=False, default="")
    score = serializers.FloatField(required=False, allow_null=True, default=None)

    def validate(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Check that an outcome or a finite score is given. Raises ValidationError."""
        score = fields["score"]
        if score is not None and not isfinite(score):
            raise serializers.ValidationError({"score": "Enter a finite number."})
        if not fields["outcome"] and score is None:
            raise serializers.ValidationError({"outcome": "Give an outcome (good or bad), a score, or both."})
        return fields


class RolloutSerializer(serializers.ModelSerializer[Rollout]):
    """A rollout."""

    alias = slug_of("name")
    stable = slug_of("served_name")
    candidate = slug_of("served_name")

    class Meta:
        model = Rollout
        fields = [
            "id",
            "alias",
            "stable",
            "candidate",
            "status",
            "weight",
            "steps",
            "step",
            "step_at",
            "guardrails",
            "checks",
            "targeting",
            "generation",
            "reason",
            "created_at",
            "opened_at",
            "ended_at",
            "waits_for_signature",
        ]


class NewRolloutSerializer(serializers.Serializer[Any]):
    """The rollout to open, or to draft."""

    alias = reference()
    candidate = serializers.CharField(max_length=200, help_text="Served name.")
    steps = StepSerializer(
        many=True,
        allow_empty=False,
        help_text="Each step starts once the previous one has had its time and samples; without guardrails, people "
        "start it.",
    )
    guardrails = GuardrailSerializer(many=True, required=False, default=list)
    checks = ChecksSerializer(required=False, default=dict)
    targeting = TargetingSerializer(required=False, default=dict)
    reason = serializers.CharField(max_length=2000)
    draft = serializers.BooleanField(default=False, help_text="Save it as a draft that somebody starts later.")


class TransitionSerializer(serializers.Serializer[Any]):
    """The reason for a transition, and the generation that the caller saw."""

    reason = serializers.CharField(max_length=2000)
    expected_generation = serializers.IntegerField(required=False, min_value=1)


class EditRolloutSerializer(TransitionSerializer):
    """The parts of a draft to change."""

    steps = StepSerializer(many=True, allow_empty=False, required=False)
    guardrails = GuardrailSerializer(many=True, required=False)
    checks = ChecksSerializer(required=False)
    targeting = TargetingSerializer(required=False)


class WeightSerializer(TransitionSerializer):
    """The candidate's new share."""

    weight = serializers.FloatField(min_value=0, max_value=100)


class ResponseSerializer(serializers.ModelSerializer[Response]):
    """The version behind an answer."""

    version = slug_of("served_name")
    digest = serializers.CharField(source="version.digest")
    alias = serializers.CharField(source="alias_name")
    approvals = serializers.SerializerMethodField(help_text="The approvals of the version on this alias.")

    class Meta:
        model = Response
        fields = [
            "id",
            "version",
            "digest",
            "arm",
            "alias",
            "at",
            "status",
            "total_ms",
            "completion_tokens",
            "approvals",
        ]

    def get_approvals(self, response: Response) -> list[str]:
        """Return the ids of the approvals behind the version on this alias."""
        return [str(approval.pk) for approval in approvals_of(response.version, response.alias_name)]
