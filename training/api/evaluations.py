"""REST endpoints of evaluations: check the caller's scope, act, answer."""

from __future__ import annotations

from typing import Any

from drf_spectacular.utils import extend_schema, extend_schema_field
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from adapterhub.api.pagination import ByCreation
from adapterhub.api.permissions import actor_of, named_project
from adapterhub.core.errors import Invalid
from adapterhub.core.tenancy import Scope
from registry.models import AdapterVersion, BaseModel
from training.api.serializers import JobSerializer
from training.api.views import OF_JOBS, Cancelling
from training.models import Dataset, Evaluation
from training.models.evaluation import MAX_PATTERN, MAX_PROMPTS
from training.runs.specification import of_project


class EvaluationSerializer(JobSerializer):
    """An evaluation: its version, the one to compare with, its prompts or task, and its results."""

    version = serializers.SlugRelatedField[AdapterVersion](slug_field="served_name", read_only=True)
    against = serializers.SlugRelatedField[AdapterVersion](slug_field="served_name", read_only=True, allow_null=True)
    variant = serializers.SlugRelatedField[BaseModel](slug_field="slug", read_only=True, allow_null=True)
    metrics = serializers.SerializerMethodField()

    class Meta(JobSerializer.Meta):
        model = Evaluation
        fields = [*JobSerializer.Meta.fields, "version", "against", "prompts", "pattern", "task", "variant", "metrics"]

    @extend_schema_field({"type": "object", "nullable": True, "additionalProperties": {}})
    def get_metrics(self, job: Evaluation) -> Any:
        """Return the results; null until there are any."""
        return job.result.metrics if job.result else None


class NewEvaluationSerializer(serializers.Serializer[Any]):
    """The evaluation to run: a version on a dataset, on prompts or by a task, alone or against another version."""

    project = serializers.SlugField()
    version = serializers.CharField(max_length=120, help_text="The served name.")
    dataset = serializers.IntegerField(required=False, help_text="Its held-out rows are measured.")
    prompts = serializers.ListField(child=serializers.CharField(), required=False, max_length=MAX_PROMPTS)
    against = serializers.CharField(max_length=120, required=False, help_text="Another version's served name.")
    pattern = serializers.CharField(
        max_length=MAX_PATTERN, required=False, help_text="Regular expression to search for in each answer."
    )
    variant = serializers.SlugRelatedField(
        slug_field="slug",
        queryset=BaseModel.objects.select_related("variant_of"),
        required=False,
        help_text="A declared variant of the base model: the loss that it costs on the dataset is measured, too.",
    )
    task = serializers.CharField(
        max_length=100, required=False, help_text="A task of lm-eval, of those that the operator offers."
    )


class EvaluationViewSet(Cancelling):
    """Evaluations of a version, compared with its base model and, if given, with the version that it would replace."""

    queryset = Evaluation.objects.select_related("project", "base_model", "version", "against", "variant", "result")
    serializer_class = EvaluationSerializer
    pagination_class = ByCreation
    filters = {**OF_JOBS, "version": "version__served_name", "against": "against__served_name"}
    scopes = {"create": Scope.TRAIN, "cancel": Scope.TRAIN}
    long_fields = frozenset({"prompts"})
    weighs = ("result__metrics",)

    @extend_schema(request=NewEvaluationSerializer, responses={202: EvaluationSerializer})
    def create(self, request: Request) -> Response:
        """Queue an evaluation of a version.

        Its results are losses with paired intervals, exact match and token F1, forgetting, and answers to the prompts.
        With `task` they are the scores of a task of lm-eval, which asks the served version through the router.
        """
        fields = self.read(NewEvaluationSerializer)
        project = named_project(request, fields.pop("project"), Scope.TRAIN)
        if pk := fields.get("dataset"):
            fields["dataset"] = of_project(Dataset, project, "dataset", pk=pk)
        for name in ("version", "against"):
            if named := fields.get(name):
                fields[name] = version_of(project, name, named)
        return self.write(Evaluation.launch(by=actor_of(request), **fields), 202)


def version_of(project: Any, field: str, named: str) -> AdapterVersion:
    """Return the project's version with the served name `named`.

    Raises Invalid, which blames `field`, if there is none.
    """
    version = AdapterVersion.objects.filter(adapter__project=project, served_name=named).first()
    if version is None:
        raise Invalid(f"There is no version {named!r} in {project}.", field=field, code=f"unknown_{field}")
    return version
