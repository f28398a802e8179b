"""REST shapes of training."""

from __future__ import annotations

from rest_framework import serializers

from registry.models import BaseModel
from training.models import Dataset, RankAnalysis, RunMetric, TrainingRun


class DatasetSerializer(serializers.ModelSerializer):
    project = serializers.SlugRelatedField(slug_field="slug", read_only=True)

    class Meta:
        model = Dataset
        fields = [
            "id",
            "project",
            "name",
            "digest",
            "rows",
            "splits",
            "columns",
            "size_bytes",
            "warnings",
            "created_at",
        ]


class NewDatasetSerializer(serializers.Serializer):
    project = serializers.SlugField()
    name = serializers.CharField(max_length=200, required=False)
    file = serializers.FileField(help_text="JSONL (prompt and completion, messages, or text), or plain text.")


class BudgetSerializer(serializers.Serializer):
    """Exactly one of the three."""

    uniform_rank = serializers.IntegerField(min_value=1, max_value=512, required=False)
    parameters = serializers.IntegerField(min_value=1, required=False)
    bytes = serializers.IntegerField(min_value=1, required=False, help_text="In bf16.")

    def validate(self, budget: dict[str, int]) -> dict[str, int]:
        if len(budget) != 1:
            raise serializers.ValidationError("Name exactly one of uniform_rank, parameters, bytes.")
        return budget


class JobSerializer(serializers.ModelSerializer):
    project = serializers.SlugRelatedField(slug_field="slug", read_only=True)
    base_model = serializers.SlugRelatedField(slug_field="slug", read_only=True)
    progress = serializers.JSONField(read_only=True)

    class Meta:
        fields = [
            "id", "project", "base_model", "dataset", "status", "reason", "message", "attempt", "progress",
            "created_at", "started_at", "finished_at",
        ]  # fmt: skip


class RankAnalysisSerializer(JobSerializer):
    class Meta(JobSerializer.Meta):
        model = RankAnalysis
        fields = [*JobSerializer.Meta.fields, "preset", "budget", "rank_min", "rank_max", "quantum"]

    def to_representation(self, analysis: RankAnalysis) -> dict:
        """The plan's fields beside the job's: modules, rank_pattern, parameters, verdict, ..."""
        shown = super().to_representation(analysis)
        plan = analysis.plan or {}
        return {**shown, **{name: value for name, value in plan.items() if name != "preset"}}


class NewRankAnalysisSerializer(serializers.Serializer):
    project = serializers.SlugField()
    base_model = serializers.SlugRelatedField(slug_field="slug", queryset=BaseModel.objects.ready())
    dataset = serializers.IntegerField()
    preset = serializers.ChoiceField(RankAnalysis.Preset.choices, default=RankAnalysis.Preset.SEED)
    budget = BudgetSerializer()
    rank_min = serializers.IntegerField(min_value=1, max_value=512, default=4)
    rank_max = serializers.IntegerField(min_value=1, max_value=512, default=32)
    quantum = serializers.IntegerField(min_value=1, max_value=64, default=4)
    samples = serializers.IntegerField(min_value=2, max_value=100_000, default=48)
    max_length = serializers.IntegerField(min_value=16, max_value=32_768, default=192)


class ReallocationSerializer(serializers.Serializer):
    budget = BudgetSerializer()


class TrainingRunSerializer(JobSerializer):
    adapter = serializers.SlugRelatedField(slug_field="slug", read_only=True)
    version = serializers.SlugRelatedField(slug_field="served_name", read_only=True)

    class Meta(JobSerializer.Meta):
        model = TrainingRun
        fields = [
            *JobSerializer.Meta.fields, "adapter", "method", "rank_analysis", "hyperparameters", "version",
            "loss_before", "loss_after",
        ]  # fmt: skip


class NewTrainingRunSerializer(serializers.Serializer):
    project = serializers.SlugField()
    adapter = serializers.SlugField()
    dataset = serializers.IntegerField()
    base_model = serializers.SlugField(required=False, help_text="Must be the adapter's.")
    method = serializers.ChoiceField(TrainingRun.Method.choices, default=TrainingRun.Method.LORA)
    rank_analysis = serializers.UUIDField(required=False, allow_null=True)
    hyperparameters = serializers.DictField(required=False, default=dict)


class RunMetricSerializer(serializers.ModelSerializer):
    class Meta:
        model = RunMetric
        fields = ["step", "values"]
