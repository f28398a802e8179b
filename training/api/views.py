"""REST endpoints of datasets, rank analyses and training runs: check the caller's scope, act, answer."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

from django.http.response import HttpResponse, HttpResponseBase
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import mixins
from rest_framework.decorators import action
from rest_framework.renderers import JSONRenderer
from rest_framework.request import Request
from rest_framework.response import Response

from adapterhub.accounts.api import SigningTokenSerializer
from adapterhub.accounts.authentication import may_still
from adapterhub.accounts.models import Project
from adapterhub.accounts.signer import client as signer
from adapterhub.api.pagination import ByCreation
from adapterhub.api.permissions import actor_of, named_project
from adapterhub.api.problems import answer, problem
from adapterhub.api.reasons import OptionalReasonSerializer
from adapterhub.api.views import ProjectViewSet, Retrieving, caller_of
from adapterhub.audit.access_log import observe
from adapterhub.audit.tags import Tag
from adapterhub.core.actor import Actor
from adapterhub.core.errors import Invalid
from adapterhub.core.tenancy import APPROVE, Scope
from registry.api.fields import ReasonSerializer
from training.api import events
from training.api import serializers as shapes
from training.datasets.remote import Source
from training.datasets.uploads import copied
from training.integrations.metric_files import METRIC_FILES, download_of
from training.lm.token_sequences import LOSSES
from training.models import Dataset, Erasure, RankAnalysis, RunLog, TrainingRun
from training.models.dataset import BrokenLines, DatasetStatus
from training.models.retention import keep
from training.planning import preflight
from training.runs import specification
from training.runs.launch import launch_run
from training.runs.specification import of_project


class Reading(ProjectViewSet, mixins.ListModelMixin, Retrieving):
    """A resource that can be listed and read."""


OF_JOBS = {
    "project": "project__slug",
    "status": "status",
    "base_model": "base_model__slug",
    "dataset": "dataset",
    "created_after": "created_at__gte",
    "created_before": "created_at__lt",
}


class Keeping(Reading):
    """Records with a retention class and a legal hold."""

    @extend_schema(request=shapes.KeepingSerializer)
    @action(detail=True, methods=["post"])
    def keep(self, request: Request, pk: str) -> Response:
        """Change the retention class of the record, or place or release a legal hold."""
        record, fields = self.get_object(), self.read(shapes.KeepingSerializer)
        keep(record, by=actor_of(request), **fields)
        return self.write(record)


class Cancelling(Reading):
    """Jobs that callers may cancel."""

    @extend_schema(request=OptionalReasonSerializer)
    @action(detail=True, methods=["post"])
    def cancel(self, request: Request, pk: str) -> Response:
        """Cancel the job; cancelling it again changes nothing.

        The last checkpoint of a training run is kept.
        """
        job = self.get_object()
        job.cancel(by=actor_of(request), **self.read(OptionalReasonSerializer))
        return self.write(job)


class DatasetViewSet(Keeping):
    """Datasets: checked and split training data."""

    queryset = Dataset.objects.select_related("project")
    serializer_class = shapes.DatasetSerializer
    takes_files = ("create", "check")
    filters = {"project": "project__slug", "status": "status", "name": "name", "digest": "digest"}
    scopes = {
        "create": Scope.TRAIN,
        "check": Scope.READ,
        "lookup": Scope.READ,
        "preview": Scope.READ,
        "erase": Scope.ADMIN,
        "keep": Scope.ADMIN,
    }

    @extend_schema(
        request={"multipart/form-data": shapes.NewDatasetSerializer},
        responses={201: shapes.DatasetSerializer, 202: shapes.DatasetSerializer},
    )
    def create(self, request: Request) -> Response:
        """Create a dataset from a file or a source.

        Broken lines are refused with 422 `broken_lines`: each error names its line, and nothing is stored. A file over
        32 MB is answered with 202 and checked by a worker: follow `status`, and read `errors`. So is a `source`; once a
        worker has read it, `source.read` identifies its bytes.
        """
        fields = self.read(shapes.NewDatasetSerializer)
        project = named_project(request, fields.pop("project"), Scope.TRAIN)
        if "source" in fields:
            return self.write(brought(project, fields, by=actor_of(request)), 202)
        upload = fields.pop("file")
        name = fields.pop("name", "") or Path(upload.name).stem
        with copied(upload) as file:
            dataset = Dataset.create(
                project=project, name=name, file=file, filename=upload.name, by=actor_of(request), **fields
            )
        return self.write(dataset, 202 if dataset.status == DatasetStatus.CHECKING else 201)

    @extend_schema(request={"multipart/form-data": shapes.NewDatasetSerializer}, responses=shapes.LookSerializer)
    @action(detail=False, methods=["post"], pagination_class=None)
    def check(self, request: Request) -> Response:
        """Check a file of up to 32 MB without storing it.

        Return what it would be as a dataset, and the number of a dataset of the project that has the same content.
        """
        fields = self.read(shapes.NewDatasetSerializer)
        project = named_project(request, fields.pop("project"), Scope.READ)
        if "file" not in fields:
            raise Invalid("Only a file can be checked at once: send a file.", field="file")
        upload = fields.pop("file")
        fields.pop("name", None)
        with copied(upload) as file:
            return Response(
                shapes.LookSerializer(Dataset.examined(project=project, file=file, filename=upload.name, **fields)).data
            )

    @extend_schema(parameters=[shapes.LookupSerializer], responses=shapes.SameFileSerializer)
    @action(detail=False, pagination_class=None)
    def lookup(self, request: Request) -> Response:
        """Return number and status of the dataset that was made from a file with this sha256 and name.

        Both are null if there is none.
        """
        query = shapes.LookupSerializer(data=request.GET)
        query.is_valid(raise_exception=True)
        fields = query.validated_data
        project = named_project(request, fields["project"], Scope.READ)
        dataset = Dataset.of_file(project=project, file_digest=fields["sha256"], filename=fields["filename"])
        return Response({"dataset": dataset and dataset.pk, "status": dataset and dataset.status})

    def handle_exception(self, exc: Exception) -> Response:
        """Return the response to an error; for broken lines it names each of them in `errors`."""
        if isinstance(exc, BrokenLines):
            errors = [
                {"field": f"file.{error.line}.{error.column}".rstrip("."), "code": error.code, "message": error.message}
                for error in exc.lines
            ]
            return answer(problem(exc.status, exc.code, exc.detail, errors))
        return super().handle_exception(exc)

    @extend_schema(
        responses={200: OpenApiTypes.OBJECT},
        parameters=[
            OpenApiParameter("base_model", str),
            OpenApiParameter("max_length", int),
            OpenApiParameter("loss", str, enum=LOSSES, description="What a run's loss counts."),
            OpenApiParameter("as_chat", bool, description="Render prompts and completions by the chat template."),
        ],
    )
    @action(detail=True, pagination_class=None)
    def preview(self, request: Request, pk: str) -> Response:
        """Return the first rows of the training split. The request is recorded as a read of the data.

        With `base_model`, also return the rows as its tokenizer and chat template render them, with the tokens marked
        that the loss counts, and the lengths of rows in tokens with what `max_length` cuts off.
        """
        dataset = self.get_object()
        is_rendered = "base_model" in request.GET
        # Of a QueryDict an empty value would count as none.
        chosen = shapes.RenderingSerializer(data=request.GET.dict(), partial=not is_rendered)
        chosen.is_valid(raise_exception=True)
        observe(Tag.DATASET_READ, by=actor_of(request), project=dataset.project, resource=request.path)
        preview = {"rows": dataset.preview()}
        if is_rendered:
            model, max_length = (chosen.validated_data[name] for name in ("base_model", "max_length"))
            preview |= dataset.rendered(model, max_length, chosen.reading)
        return Response(preview)

    @extend_schema(request=ReasonSerializer, responses={201: shapes.ErasureSerializer})
    @action(detail=True, methods=["post"])
    def erase(self, request: Request, pk: str) -> Response:
        """Request that the content of the dataset be erased; another person must approve that."""
        fields = self.read(ReasonSerializer)
        erasure = Erasure.request(self.get_object(), by=actor_of(request), **fields)
        return Response(shapes.ErasureSerializer(erasure).data, 201)


def brought(project: Project, fields: dict[str, Any], *, by: Actor) -> Dataset:
    """Create and return a dataset whose source a worker will read. Raises Invalid for a source that is not allowed."""
    chosen = {name: fields.pop(name, "") for name in ("revision", "config", "split")}
    return Dataset.bring(project=project, source=Source(fields.pop("source"), **chosen), by=by, **fields)


class ErasureViewSet(Reading):
    """Requests to erase the content of a dataset, with the person who decided on each."""

    queryset = Erasure.objects.select_related("dataset__project", "signer")
    serializer_class = shapes.ErasureSerializer
    project_path = "dataset__project"
    filters = {"project": "dataset__project__slug", "dataset": "dataset", "status": "status"}
    scopes = {"approve": APPROVE, "reject": APPROVE}

    def decide(self, verb: str) -> Response:
        """Apply `verb`, a method of the erasure, and return the erasure; a recent sign-in is required."""
        erasure, fields = self.get_object(), self.read(SigningTokenSerializer)
        signer.decide(erasure, verb, self.request, **fields)
        return self.write(erasure)

    @extend_schema(request=SigningTokenSerializer)
    @action(detail=True, methods=["post"])
    def approve(self, request: Request, pk: str) -> Response:
        """Approve the request and erase the content.

        The person who made the request cannot approve it, and tokens cannot.
        """
        return self.decide("approve")

    @extend_schema(request=SigningTokenSerializer)
    @action(detail=True, methods=["post"])
    def reject(self, request: Request, pk: str) -> Response:
        """Reject the request and keep the content."""
        return self.decide("reject")


class RankAnalysisViewSet(Cancelling):
    """Rank analyses (TARS): the rank of every module, planned before a training."""

    queryset = RankAnalysis.objects.select_related("project", "base_model")
    serializer_class = shapes.RankAnalysisSerializer
    pagination_class = ByCreation
    filters = {**OF_JOBS, "preset": "preset"}
    scopes = {"create": Scope.TRAIN, "cancel": Scope.TRAIN, "reallocate": Scope.READ}

    @extend_schema(request=shapes.NewRankAnalysisSerializer, responses={202: shapes.RankAnalysisSerializer})
    def create(self, request: Request) -> Response:
        """Queue a rank analysis."""
        fields = dict(self.read(shapes.NewRankAnalysisSerializer))
        project = named_project(request, fields.pop("project"), Scope.TRAIN)
        fields["budget"] = dict(fields["budget"])
        dataset = of_project(Dataset, project, "dataset", pk=fields.pop("dataset"))
        analysis = RankAnalysis.launch(project=project, dataset=dataset, by=actor_of(request), **fields)
        return self.write(analysis, 202)

    @extend_schema(request=shapes.ReallocationSerializer, responses={200: OpenApiTypes.OBJECT})
    @action(detail=True, methods=["post"])
    def reallocate(self, request: Request, pk: str) -> Response:
        """Return the plan for another budget at once, from the stored signals. Nothing is stored."""
        analysis = self.get_object()
        plan = analysis.reallocate(dict(self.read(shapes.ReallocationSerializer)["budget"]))
        return Response(shapes.shown_plan(plan))


class TrainingRunViewSet(Cancelling, Keeping):
    """Training runs, which can be queued, followed live, cancelled and resumed."""

    queryset = TrainingRun.objects.select_related("project", "base_model", "adapter", "version")
    serializer_class = shapes.TrainingRunSerializer
    pagination_class = ByCreation
    filters = {**OF_JOBS, "adapter": "adapter__slug", "method": "method", "rank_analysis": "rank_analysis"}
    scopes = {
        **dict.fromkeys(("create", "cancel", "resume", "clone", "preflight"), Scope.TRAIN),
        **dict.fromkeys(("metrics", "metric_file", "answers", "logs", "events", "compare"), Scope.READ),
        "keep": Scope.ADMIN,
    }
    long_fields = frozenset({"prompts"})

    @extend_schema(request=shapes.NewTrainingRunSerializer, responses={202: shapes.TrainingRunSerializer})
    def create(self, request: Request) -> Response:
        """Queue a training run. With `anyway` it is queued even if the preflight check says that it will not fit."""
        fields = self.read(shapes.NewTrainingRunSerializer)
        project = named_project(request, fields["project"], Scope.TRAIN)
        run = launch_run(by=actor_of(request), anyway=fields["anyway"], **specification.arguments(fields, project))
        return self.write(run, 202)

    @extend_schema(request=shapes.NewTrainingRunSerializer, responses={200: OpenApiTypes.OBJECT})
    @action(detail=False, methods=["post"], pagination_class=None)
    def preflight(self, request: Request) -> Response:
        """Return what a run would need, without queueing it.

        The response has memory, time, disk and queue, and every hyperparameter that the run would have.
        """
        fields = self.read(shapes.NewTrainingRunSerializer)
        project = named_project(request, fields["project"], Scope.TRAIN)
        run = TrainingRun.planned(by=actor_of(request), **specification.arguments(fields, project))
        return Response({**preflight.check(run), "hyperparameters": run.hyperparameters})

    @extend_schema(request=shapes.CloneSerializer, responses={202: shapes.TrainingRunSerializer})
    @action(detail=True, methods=["post"])
    def clone(self, request: Request, pk: str) -> Response:
        """Queue the same run again, with the changes in the body. Hyperparameters that the body does not name stay."""
        run = self.get_object()
        fields = dict(self.read(shapes.CloneSerializer))
        anyway = fields.pop("anyway")
        chosen = {**run.hyperparameters, **fields.pop("hyperparameters", {})}
        body = {**specification.body_of(run), **fields, "hyperparameters": chosen}
        return self.write(
            launch_run(by=actor_of(request), anyway=anyway, **specification.arguments(body, run.project)), 202
        )

    @extend_schema(responses={200: OpenApiTypes.OBJECT}, parameters=[OpenApiParameter("to", OpenApiTypes.UUID)])
    @action(detail=True, pagination_class=None)
    def compare(self, request: Request, pk: str) -> Response:
        """List the differences between the requests of this run and of the run that `to` names.

        422 `unknown_run` if there is no such run.
        """
        run = self.get_object()
        try:
            other = self.get_queryset().filter(pk=UUID(request.GET.get("to", ""))).first()
        except ValueError:
            other = None
        if other is None:
            raise Invalid("Name the other run: ?to=<its id>.", field="to", code="unknown_run")
        return Response({"differences": specification.differences(run, other)})

    @extend_schema(
        responses={200: OpenApiTypes.OBJECT},
        parameters=[OpenApiParameter("after", int), OpenApiParameter("log_from", int)],
    )
    @action(detail=True, pagination_class=None, renderer_classes=[JSONRenderer, events.EventStream])
    def events(self, request: Request, pk: str) -> HttpResponseBase:
        """Return the run's state, and its metrics and log text after a step and a byte of the log.

        `after` is the step, `log_from` the byte. With `Accept: text/event-stream`, stream events as they happen.
        """
        run, place = self.get_object(), events.place_of(request)
        if request.accepted_renderer.media_type == events.EventStream.media_type:
            may_listen = partial(may_still, request, run.project, Scope.READ)
            return events.stream_of(run, place, may_listen, caller_of(request))
        return Response(events.snapshot(run, place))

    @extend_schema(request=None)
    @action(detail=True, methods=["post"])
    def resume(self, request: Request, pk: str) -> Response:
        """Queue a failed or cancelled run again; it continues from its last checkpoint."""
        run = self.get_object()
        run.resume(by=actor_of(request))
        return self.write(run)

    @extend_schema(responses=shapes.RunMetricSerializer(many=True))
    @action(detail=True, pagination_class=None)
    def metrics(self, request: Request, pk: str) -> Response:
        """List the metrics of every logged step."""
        return Response(shapes.RunMetricSerializer(self.get_object().metrics.all(), many=True).data)

    @extend_schema(
        responses={(200, "text/csv"): OpenApiTypes.STR, (200, "application/octet-stream"): OpenApiTypes.BINARY},
        parameters=[OpenApiParameter("as", str, enum=tuple(METRIC_FILES))],
    )
    @action(detail=True, pagination_class=None, url_path="metric-file")
    def metric_file(self, request: Request, pk: str) -> HttpResponse:
        """Download the metrics of every logged step as `csv` (the default) or as an event file of `tensorboard`."""
        kind = request.GET.get("as", "csv")
        if kind not in METRIC_FILES:
            raise Invalid(f"There is no metric file as {kind!r}: choose {', '.join(METRIC_FILES)}.", field="as")
        return download_of(self.get_object(), kind)

    @extend_schema(responses=shapes.CheckpointAnswerSerializer(many=True))
    @action(detail=True, pagination_class=None)
    def answers(self, request: Request, pk: str) -> Response:
        """List the answers of each checkpoint to the run's prompts; step 0 is the base model."""
        return Response(shapes.CheckpointAnswerSerializer(self.get_object().answers.all(), many=True).data)

    @extend_schema(responses={200: OpenApiTypes.OBJECT})
    @action(detail=True, pagination_class=None)
    def logs(self, request: Request, pk: str) -> Response:
        """Return the last 20,000 characters of the training process's log."""
        text = RunLog.tail(self.get_object(), 20_000)
        return Response({"text": text})
