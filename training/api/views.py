"""REST: datasets, rank analyses, training runs. Guard, verb, answer."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from django.conf import settings
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema
from rest_framework import mixins
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from adapterhub.accounts.models import Project, Scope
from adapterhub.api.errors import Invalid
from adapterhub.api.pagination import NewestFirst
from adapterhub.api.permissions import actor_of, named_project
from adapterhub.api.problems import answer, problem
from adapterhub.api.views import ProjectViewSet
from registry.models import Adapter, AdapterVersion
from training.api import serializers as shapes
from training.models import Compression, Dataset, RankAnalysis, TrainingRun
from training.models.dataset import BrokenLines


class Reading(ProjectViewSet, mixins.ListModelMixin, mixins.RetrieveModelMixin):
    """A resource that can be listed and read."""


class ByCreation(NewestFirst):
    ordering = "-created_at"


def of_project(model: Any, project: Project, field: str, **identity: Any) -> Any:
    """A thing of the project that a body names. Raises Invalid naming the field."""
    thing = model.objects.filter(project=project, **identity).first()
    if thing is None:
        value = next(iter(identity.values()))
        raise Invalid(f"There is no {field} {value!s} in {project}.", field=field, code=f"unknown_{field}")
    return thing


class DatasetViewSet(Reading):
    """Checked and split training data."""

    queryset = Dataset.objects.select_related("project")
    serializer_class = shapes.DatasetSerializer
    scopes = {"create": Scope.TRAIN, "preview": Scope.READ}

    @extend_schema(
        request={"multipart/form-data": shapes.NewDatasetSerializer}, responses={201: shapes.DatasetSerializer}
    )
    def create(self, request: Request) -> Response:
        """Upload a file. Broken lines are refused by number, and nothing is stored."""
        fields = self.read(shapes.NewDatasetSerializer)
        project = named_project(request, fields["project"], Scope.TRAIN)
        upload = fields["file"]
        settings.WORK_DIR.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.NamedTemporaryFile(dir=settings.WORK_DIR) as file:
            for chunk in upload.chunks():
                file.write(chunk)
            file.flush()
            dataset = Dataset.create(
                project=project,
                name=fields.get("name") or Path(upload.name).stem,
                file=Path(file.name),
                filename=upload.name,
                by=actor_of(request),
            )
        return self.write(dataset, 201)

    def handle_exception(self, exc: Exception) -> Response:
        if isinstance(exc, BrokenLines):
            errors = [
                {"field": f"file.{error.line}.{error.column}".rstrip("."), "code": error.code, "message": error.message}
                for error in exc.errors
            ]
            return answer(problem(exc.status, exc.code, exc.detail, errors))
        return super().handle_exception(exc)

    @extend_schema(responses={200: OpenApiTypes.OBJECT})
    @action(detail=True, pagination_class=None)
    def preview(self, request: Request, pk: str) -> Response:
        """The first rows of the training split."""
        return Response({"rows": self.get_object().preview()})


class RankAnalysisViewSet(Reading):
    """TARS: ranks of every module, planned before training."""

    queryset = RankAnalysis.objects.select_related("project", "base_model")
    serializer_class = shapes.RankAnalysisSerializer
    pagination_class = ByCreation
    scopes = {"create": Scope.TRAIN, "cancel": Scope.TRAIN, "reallocate": Scope.READ}

    @extend_schema(request=shapes.NewRankAnalysisSerializer, responses={202: shapes.RankAnalysisSerializer})
    def create(self, request: Request) -> Response:
        """Queue an analysis."""
        fields = dict(self.read(shapes.NewRankAnalysisSerializer))
        project = named_project(request, fields.pop("project"), Scope.TRAIN)
        fields["budget"] = dict(fields["budget"])
        dataset = of_project(Dataset, project, "dataset", pk=fields.pop("dataset"))
        analysis = RankAnalysis.launch(project=project, dataset=dataset, by=actor_of(request), **fields)
        return self.write(analysis, 202)

    @extend_schema(request=None)
    @action(detail=True, methods=["post"])
    def cancel(self, request: Request, pk: str) -> Response:
        """Stop it. Twice is as once."""
        analysis = self.get_object()
        analysis.cancel(by=actor_of(request))
        return self.write(analysis)

    @extend_schema(request=shapes.ReallocationSerializer, responses={200: OpenApiTypes.OBJECT})
    @action(detail=True, methods=["post"])
    def reallocate(self, request: Request, pk: str) -> Response:
        """The plan for another budget, at once, from the stored signals."""
        analysis = self.get_object()
        plan = analysis.reallocate(dict(self.read(shapes.ReallocationSerializer)["budget"]))
        return Response(shapes.shown_plan(plan))


class TrainingRunViewSet(Reading):
    """Trainings: queued, live, cancellable, resumable."""

    queryset = TrainingRun.objects.select_related("project", "base_model", "adapter", "version")
    serializer_class = shapes.TrainingRunSerializer
    pagination_class = ByCreation
    scopes = {
        **dict.fromkeys(("create", "cancel", "resume"), Scope.TRAIN),
        **dict.fromkeys(("metrics", "logs"), Scope.READ),
    }

    @extend_schema(request=shapes.NewTrainingRunSerializer, responses={202: shapes.TrainingRunSerializer})
    def create(self, request: Request) -> Response:
        """Queue a run."""
        fields = self.read(shapes.NewTrainingRunSerializer)
        project = named_project(request, fields["project"], Scope.TRAIN)
        adapter = of_project(Adapter, project, "adapter", slug=fields["adapter"])
        if fields.get("base_model", adapter.base_model.slug) != adapter.base_model.slug:
            raise Invalid(f"{adapter} is an adapter of {adapter.base_model}.", field="base_model", code="wrong_base")
        analysis = fields.get("rank_analysis")
        run = TrainingRun.launch(
            adapter=adapter,
            dataset=of_project(Dataset, project, "dataset", pk=fields["dataset"]),
            rank_analysis=analysis and of_project(RankAnalysis, project, "rank_analysis", pk=analysis),
            budget=dict(fields["budget"]) if fields.get("budget") else None,
            start_values=fields.get("start_values"),
            hyperparameters=fields["hyperparameters"],
            method=fields["method"],
            by=actor_of(request),
        )
        return self.write(run, 202)

    @extend_schema(request=None)
    @action(detail=True, methods=["post"])
    def cancel(self, request: Request, pk: str) -> Response:
        """Stop it; the last checkpoint is kept. Twice is as once."""
        run = self.get_object()
        run.cancel(by=actor_of(request))
        return self.write(run)

    @extend_schema(request=None)
    @action(detail=True, methods=["post"])
    def resume(self, request: Request, pk: str) -> Response:
        """Queue a failed or cancelled run again; it goes on from its last checkpoint."""
        run = self.get_object()
        run.resume(by=actor_of(request))
        return self.write(run)

    @extend_schema(responses=shapes.RunMetricSerializer(many=True))
    @action(detail=True, pagination_class=None)
    def metrics(self, request: Request, pk: str) -> Response:
        """Every logged step."""
        return Response(shapes.RunMetricSerializer(self.get_object().metrics.all(), many=True).data)

    @extend_schema(responses={200: OpenApiTypes.OBJECT})
    @action(detail=True, pagination_class=None)
    def logs(self, request: Request, pk: str) -> Response:
        """The end of the child's log."""
        path = self.get_object().folder / "log.txt"
        text = path.read_text(errors="replace")[-20_000:] if path.exists() else ""
        return Response({"text": text})


class CompressionViewSet(Reading):
    """Stored versions made smaller after their training."""

    queryset = Compression.objects.select_related("project", "base_model", "source", "version")
    serializer_class = shapes.CompressionSerializer
    pagination_class = ByCreation
    scopes = {"cancel": Scope.TRAIN}

    @extend_schema(request=None)
    @action(detail=True, methods=["post"])
    def cancel(self, request: Request, pk: str) -> Response:
        """Stop it. Twice is as once."""
        compression = self.get_object()
        compression.cancel(by=actor_of(request))
        return self.write(compression)


class VersionCompressionViewSet(ProjectViewSet):
    """The verb that makes a version smaller."""

    queryset = AdapterVersion.objects.select_related("adapter__project", "adapter__base_model")
    serializer_class = shapes.CompressionSerializer
    project_path = "adapter__project"
    lookup_field = "number"
    lookup_value_regex = r"\d+"
    scopes = {"compress": Scope.TRAIN}

    def get_queryset(self) -> Any:
        return super().get_queryset().filter(adapter__slug=self.kwargs.get("slug"))

    @extend_schema(request=shapes.NewCompressionSerializer, responses={202: shapes.CompressionSerializer})
    @action(detail=True, methods=["post"])
    def compress(self, request: Request, slug: str, number: str) -> Response:
        """Queue it: the updates are cut to their leading directions, and a new version of the adapter results."""
        version = self.get_object()
        fields = self.read(shapes.NewCompressionSerializer)
        pk = fields.get("dataset")
        dataset = pk and of_project(Dataset, version.project, "dataset", pk=pk)
        compression = Compression.launch(version, dict(fields["budget"]), dataset=dataset, by=actor_of(request))
        return self.write(compression, 202)
