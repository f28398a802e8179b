"""REST serializers of training."""

from __future__ import annotations

from typing import Any

from rest_framework import serializers

from adapterhub.accounts.models import Project, User
from adapterhub.api.parsers import BoundedJSONField
from registry.models import Adapter, AdapterVersion, BaseModel
from training.api.run_fields import HyperparametersField, MixedSerializer
from training.datasets import readers, text_streams
from training.datasets.row_preview import ReadingOfRows
from training.lm.token_sequences import ANSWERS, LOSSES
from training.models import (
    CheckpointAnswer,
    Dataset,
    Erasure,
    RankAnalysis,
    RunMetric,
    TrainingRun,
    analysis_settings,
)
from training.models.retention import Retention
from training.tars.probed_rates import rate_of


class DatasetSerializer(serializers.ModelSerializer[Dataset]):
    """A dataset with its digest, its numbers of rows and bytes, and the errors and warnings of its check."""

    project = serializers.SlugRelatedField[Project](slug_field="slug", read_only=True)
    kept_until = serializers.DateTimeField(read_only=True)

    class Meta:
        model = Dataset
        fields = [
            "id",
            "project",
            "name",
            "status",
            "message",
            "format",
            "encoding",
            "escape",
            "read_as",
            "source",
            "file_digest",
            "same_as",
            "digest",
            "rows",
            "splits",
            "columns",
            "size_bytes",
            "errors",
            "warnings",
            "retention",
            "kept_until",
            "hold_reason",
            "created_at",
        ]


class FlagInQuery(serializers.BooleanField):
    """A flag among the parameters of an address: `true` or `false`, as clients write it."""

    TRUE_VALUES, FALSE_VALUES = {"true", "True", True}, {"false", "False", False}


class RenderingSerializer(serializers.Serializer[Any]):
    """The base model whose tokenizer reads the rows, the length at which it cuts them, and how it reads them."""

    base_model = serializers.SlugRelatedField(slug_field="slug", queryset=BaseModel.objects.ready())
    max_length = serializers.IntegerField(min_value=16, max_value=1_000_000, default=256)
    loss = serializers.ChoiceField(LOSSES, default=ANSWERS)
    as_chat = FlagInQuery(default=False)

    @property
    def reading(self) -> ReadingOfRows:
        """Return the way in which a run with these choices reads the rows."""
        return ReadingOfRows(self.validated_data["as_chat"], self.validated_data["loss"])


class KeepingSerializer(serializers.Serializer[Any]):
    """A change of the retention class or of the legal hold, with a reason."""

    retention = serializers.ChoiceField(Retention.choices, required=False)
    hold = serializers.BooleanField(required=False, allow_null=True, default=None, help_text="Legal hold: on or off.")
    reason = serializers.CharField(max_length=2000)


class ErasureSerializer(serializers.ModelSerializer[Erasure]):
    """A request to erase a dataset's content, with the decision."""

    signer = serializers.SlugRelatedField[User](slug_field="username", read_only=True, allow_null=True)

    class Meta:
        model = Erasure
        fields = ["id", "dataset", "status", "reason", "author_name", "signer", "meaning", "created_at", "decided_at"]


SOURCE_CHOICES = ("revision", "config", "split")


class NewDatasetSerializer(serializers.Serializer[Any]):
    """The file to upload or the source to read, and how it is to be read."""

    project = serializers.SlugField()
    name = serializers.CharField(max_length=200, required=False)
    file = serializers.FileField(required=False, help_text="Rows of prompts, messages, text or preferences.")
    source = serializers.CharField(  # type: ignore[assignment]
        required=False, max_length=1000, help_text="Instead of a file: s3://bucket/key or hf://owner/name; 202."
    )
    revision = serializers.CharField(
        required=False,
        allow_blank=True,
        max_length=200,
        help_text="Of a source: a hub's branch, tag or commit, an object's version.",
    )
    config = serializers.CharField(required=False, allow_blank=True, max_length=200, help_text="Of a hub's dataset.")
    split = serializers.CharField(
        required=False, allow_blank=True, max_length=200, help_text="Of a hub's dataset; else all of them."
    )
    format = serializers.ChoiceField(
        readers.FORMATS, required=False, help_text="By default, from the file's extension."
    )
    encoding = serializers.ChoiceField(
        tuple(text_streams.ENCODINGS), required=False, help_text="Else UTF-8, or what the file's byte-order mark says."
    )
    escape = serializers.BooleanField(
        default=False, help_text="Put a space into control tokens of prompts, so that none is read as one."
    )
    mapping = BoundedJSONField(required=False, help_text='Our column -> the file\'s: {"prompt": "question"}.')

    def validate(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Return the fields, without empty choices of a source.

        Raises ValidationError unless either a file or a source is named, and for choices of a source without one.
        """
        if ("file" in fields) == ("source" in fields):
            raise serializers.ValidationError({"file": ["Send a file, or name a source, and not both."]})
        chosen = [name for name in SOURCE_CHOICES if fields.get(name)]
        if chosen and "source" not in fields:
            raise serializers.ValidationError({chosen[0]: [f"{chosen[0]} is a choice of a source: name one."]})
        return {name: value for name, value in fields.items() if name not in SOURCE_CHOICES or value}

    def validate_mapping(self, mapping: Any) -> dict[str, str]:
        """Return the mapping. Raises ValidationError unless it is an object."""
        if not isinstance(mapping, dict):
            raise serializers.ValidationError("Give an object: AdapterHub's column -> the file's.")
        return mapping


class LookSerializer(serializers.ModelSerializer[Dataset]):
    """The result of checking a file without storing it: the dataset that it would be."""

    dataset = serializers.IntegerField(source="pk", allow_null=True, read_only=True, help_text="null: it is new.")

    class Meta:
        model = Dataset
        fields = ["dataset", "digest", "read_as", "rows", "splits", "columns", "warnings"]


class LookupSerializer(serializers.Serializer[Any]):
    """The file whose dataset is to be found, by its sha256 and name."""

    project = serializers.SlugField()
    sha256 = serializers.RegexField("^[0-9a-f]{64}$", help_text="Of the file's bytes, in hexadecimal.")
    filename = serializers.CharField(max_length=300, help_text="Its extension says how it is read.")


class SameFileSerializer(serializers.Serializer[Any]):
    """The dataset that was made from a file."""

    dataset = serializers.IntegerField(allow_null=True, help_text="null: no dataset was made of this file.")
    status = serializers.CharField(allow_null=True, help_text="That of the dataset.")


class BudgetSerializer(serializers.Serializer[Any]):
    """The budget of the ranks: exactly one of the three fields."""

    uniform_rank = serializers.IntegerField(min_value=1, max_value=512, required=False)
    parameters = serializers.IntegerField(min_value=1, required=False)
    bytes = serializers.IntegerField(min_value=1, required=False, help_text="In bf16.")

    def validate(self, budget: dict[str, int]) -> dict[str, int]:
        """Return the budget. Raises ValidationError unless exactly one field is given."""
        if len(budget) != 1:
            raise serializers.ValidationError("Name exactly one of uniform_rank, parameters, bytes.")
        return budget


class JobSerializer(serializers.ModelSerializer[Any]):
    """The fields all jobs share: project, base model, dataset, status with its reason, attempt, progress and times."""

    project = serializers.SlugRelatedField[Project](slug_field="slug", read_only=True)
    base_model = serializers.SlugRelatedField[BaseModel](slug_field="slug", read_only=True)
    progress = serializers.JSONField(read_only=True)

    class Meta:
        fields = [
            "id",
            "project",
            "base_model",
            "dataset",
            "status",
            "reason",
            "message",
            "attempt",
            "progress",
            "created_at",
            "started_at",
            "finished_at",
        ]


# Fields of a plan that are added to the job's own; the preset and its settings are there already.
PLAN_FIELDS = (
    "rank_min",
    "rank_max",
    "quantum",
    "scale",
    "modules",
    "r",
    "lora_alpha",
    "rank_pattern",
    "alpha_pattern",
    "target_modules",
    "parameters",
    "budget",
    "serving",
    "greedy_gap",
    "divergence_used",
    "learning_rate",
    "probes",
    "stability",
    "sequences",
    "verdict",
    "verdict_text",
    "seconds",
    "start_values",
    "race",
)
MODULE_FIELDS = ("name", "shape", "sensitivity", "divergence", "score", "rank")


def shown_plan(plan: dict[str, Any]) -> dict[str, Any]:
    """Return the plan without the modules' fields that only an allocation reads: the spectra are most of its bytes.

    Without a race `learning_rate` is that of the probe with the lowest loss: stored plans may have its double.
    """
    modules = [{name: module[name] for name in MODULE_FIELDS} for module in plan["modules"]]
    return {**plan, "modules": modules, "learning_rate": rate_of(plan), "race": plan.get("race")}


class RankAnalysisSerializer(JobSerializer):
    """A rank analysis with its settings and, once it has succeeded, its plan."""

    settings = serializers.JSONField(source="parts", read_only=True, help_text="Every setting: the preset's and yours.")

    class Meta(JobSerializer.Meta):
        model = RankAnalysis
        fields = [
            *JobSerializer.Meta.fields,
            "preset",
            "settings",
            "budget",
            "rank_min",
            "rank_max",
            "quantum",
            "samples",
            "max_length",
        ]

    more_fields = PLAN_FIELDS
    wanted = PLAN_FIELDS

    def to_representation(self, analysis: RankAnalysis) -> dict[str, Any]:
        """Return the job's fields together with those of its plan: modules, rank_pattern, parameters, verdict, ..."""
        plan = shown_plan(analysis.plan) if analysis.plan else {}
        plan_fields = {name: plan[name] for name in PLAN_FIELDS if name in plan and name in self.wanted}
        return {**super().to_representation(analysis), **plan_fields}


class NewRankAnalysisSerializer(serializers.Serializer[Any]):
    """The rank analysis to run."""

    project = serializers.SlugField()
    base_model = serializers.SlugRelatedField(slug_field="slug", queryset=BaseModel.objects.ready())
    dataset = serializers.IntegerField()
    preset = serializers.ChoiceField(RankAnalysis.Preset.choices, default=RankAnalysis.Preset.DEFAULT)
    settings = serializers.DictField(
        default=dict, help_text=f"Instead of the preset's: {', '.join(analysis_settings.NAMES)}."
    )
    budget = BudgetSerializer()
    rank_min = serializers.IntegerField(
        min_value=0, max_value=512, allow_null=True, default=None, help_text="None: the preset's."
    )
    rank_max = serializers.IntegerField(min_value=1, max_value=512, default=32)
    quantum = serializers.IntegerField(min_value=1, max_value=64, default=4)
    samples = serializers.IntegerField(min_value=2, max_value=100_000, default=48)
    max_length = serializers.IntegerField(min_value=16, max_value=32_768, default=192)


class ReallocationSerializer(serializers.Serializer[Any]):
    """The budget for which to plan the ranks again."""

    budget = BudgetSerializer()


class TrainingRunSerializer(JobSerializer):
    """A training run: its request, its progress, and the version that it made."""

    start_values = serializers.BooleanField(source="takes_start_values", read_only=True)
    mixture = MixedSerializer(many=True, read_only=True)
    adapter = serializers.SlugRelatedField[Adapter](slug_field="slug", read_only=True)
    version = serializers.SlugRelatedField[AdapterVersion](slug_field="served_name", read_only=True, allow_null=True)

    class Meta(JobSerializer.Meta):
        model = TrainingRun
        fields = [
            *JobSerializer.Meta.fields,
            "adapter",
            "method",
            "priority",
            "rank_analysis",
            "budget",
            "start_values",
            "hyperparameters",
            "prompts",
            "validation_dataset",
            "mixture",
            "version",
            "loss_before",
            "loss_after",
            "retention",
            "kept_until",
            "hold_reason",
        ]


class NewTrainingRunSerializer(serializers.Serializer[Any]):
    """The training run to queue."""

    project = serializers.SlugField()
    adapter = serializers.SlugField()
    dataset = serializers.IntegerField()
    base_model = serializers.SlugField(required=False, help_text="Must be the adapter's base model.")
    validation_dataset = serializers.IntegerField(
        required=False, allow_null=True, help_text="All of its rows are evaluated on, instead of the held-out ones."
    )
    mixture = MixedSerializer(
        many=True,
        required=False,
        help_text="Datasets that are mixed in. `dataset` has the weight 1: a mixed one of 0.5 gives half as many rows.",
    )
    method = serializers.ChoiceField(TrainingRun.Method.choices, default=TrainingRun.Method.LORA)
    rank_analysis = serializers.UUIDField(required=False, allow_null=True)
    budget = BudgetSerializer(
        required=False, allow_null=True, help_text="Plan the ranks of the analysis for this budget instead."
    )
    start_values = serializers.BooleanField(
        required=False, allow_null=True, help_text="Start from the start values of the analysis; null: if it has any."
    )
    hyperparameters = HyperparametersField(required=False, default=dict)
    prompts = serializers.DictField(
        child=serializers.CharField(max_length=8000),
        required=False,
        default=dict,
        help_text="Prompts by name. Each checkpoint answers them, and the answers are stored.",
    )
    priority = serializers.IntegerField(default=0, min_value=-100, max_value=100)
    anyway = serializers.BooleanField(
        default=False, help_text="Queue it even if the preflight check says it will not fit."
    )


class CloneSerializer(serializers.Serializer[Any]):
    """The changes for the copy of a run; every other field stays as it was."""

    adapter = serializers.SlugField(required=False)
    dataset = serializers.IntegerField(required=False)
    validation_dataset = serializers.IntegerField(required=False, allow_null=True)
    mixture = MixedSerializer(many=True, required=False)
    method = serializers.ChoiceField(TrainingRun.Method.choices, required=False)
    rank_analysis = serializers.UUIDField(required=False, allow_null=True)
    hyperparameters = HyperparametersField(required=False)
    priority = serializers.IntegerField(required=False, min_value=-100, max_value=100)
    anyway = serializers.BooleanField(default=False)


class RunMetricSerializer(serializers.ModelSerializer[RunMetric]):
    """The metrics of one training step, by name."""

    class Meta:
        model = RunMetric
        fields = ["step", "values"]


class CheckpointAnswerSerializer(serializers.ModelSerializer[CheckpointAnswer]):
    """The answer of the checkpoint at a step to a named prompt."""

    class Meta:
        model = CheckpointAnswer
        fields = ["step", "name", "answer"]
