"""REST: rollouts, and the feedback on answers that they are judged by."""

from __future__ import annotations

from django.utils.timezone import now
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from adapterhub.api.conditions import require_tag, wanted_tag
from adapterhub.api.pagination import ByCreation
from adapterhub.api.permissions import actor_of
from adapterhub.api.views import ProjectViewSet
from adapterhub.core.errors import Conflict, PreconditionFailed
from adapterhub.core.tenancy import Scope
from registry import models
from registry.api import serializers as shapes
from registry.api.views import Reading, named_record
from registry.rollouts import controller

VERBS = (
    "create",
    "partial_update",
    "start",
    "discard",
    "pause",
    "resume",
    "advance",
    "set_weight",
    "promote",
    "rollback",
)


class RolloutViewSet(Reading):
    """Rollouts: A/B splits between two versions. Every verb takes a reason."""

    queryset = models.Rollout.objects.select_related("alias__project", "stable__adapter", "candidate__adapter")
    serializer_class = shapes.RolloutSerializer
    pagination_class = ByCreation
    project_path = "alias__project"
    filters = {
        "project": "alias__project__slug",
        "alias": "alias__name",
        "candidate": "candidate__served_name",
        "stable": "stable__served_name",
        "status": "status",
        "created_after": "created_at__gte",
        "created_before": "created_at__lt",
    }
    scopes = {**dict.fromkeys(VERBS, Scope.OPERATE), "analysis": Scope.READ}

    @extend_schema(request=shapes.NewRolloutSerializer, responses={201: shapes.RolloutSerializer})
    def create(self, request: Request) -> Response:
        """Open a rollout, or store it as a draft.

        An open rollout starts when every healthy replica holds the candidate.
        """
        fields = self.read(shapes.NewRolloutSerializer)
        alias = named_record(self, models.Alias, "name", fields["alias"], Scope.OPERATE, "alias")
        candidate = named_record(
            self, models.AdapterVersion, "served_name", fields["candidate"], Scope.READ, "candidate"
        )
        steps = [dict(step) for step in fields["steps"]]
        rollout = models.Rollout.create(
            alias=alias,
            candidate=candidate,
            steps=steps,
            guardrails=[dict(rail) for rail in fields["guardrails"]],
            checks=dict(fields["checks"]),
            targeting=dict(fields["targeting"]),
            reason=fields["reason"],
            by=actor_of(request),
            draft=fields["draft"],
        )
        return self.write(rollout, 201)

    @extend_schema(request=shapes.EditRolloutSerializer)
    def partial_update(self, request: Request, pk: str) -> Response:
        """Change parts of the plan of a draft."""
        return self.move("edit", shapes.EditRolloutSerializer)

    def move(self, verb: str, shape: type = shapes.TransitionSerializer) -> Response:
        """Call the rollout's method `verb`, on condition of the generation in If-Match or in the body."""
        rollout, fields, tag = self.get_object(), self.read(shape), wanted_tag(self.request)
        require_tag(rollout, tag)
        if tag:
            fields["expected_generation"] = rollout.generation
        try:
            getattr(rollout, verb)(by=actor_of(self.request), **fields)
        except Conflict as error:
            if tag and error.code == "stale_generation":
                raise PreconditionFailed(error.detail) from None
            raise
        return self.write(rollout)

    @extend_schema(request=shapes.TransitionSerializer)
    @action(detail=True, methods=["post"])
    def start(self, request: Request, pk: str) -> Response:
        """Open a draft with its present plan."""
        return self.move("start")

    @extend_schema(request=shapes.TransitionSerializer)
    @action(detail=True, methods=["post"])
    def discard(self, request: Request, pk: str) -> Response:
        """Discard a draft: end it without starting it."""
        return self.move("discard")

    @extend_schema(request=shapes.TransitionSerializer)
    @action(detail=True, methods=["post"])
    def pause(self, request: Request, pk: str) -> Response:
        """Pause the rollout: the stable version serves everybody until it is resumed."""
        return self.move("pause")

    @extend_schema(request=shapes.TransitionSerializer)
    @action(detail=True, methods=["post"])
    def resume(self, request: Request, pk: str) -> Response:
        """Resume a paused rollout with the same weight and salt."""
        return self.move("resume")

    @extend_schema(request=shapes.WeightSerializer)
    @action(detail=True, methods=["post"], url_path="set-weight")
    def set_weight(self, request: Request, pk: str) -> Response:
        """Change the candidate's share."""
        return self.move("set_weight", shapes.WeightSerializer)

    @extend_schema(request=shapes.TransitionSerializer)
    @action(detail=True, methods=["post"])
    def promote(self, request: Request, pk: str) -> Response:
        """Promote the candidate: it serves everybody from now on."""
        return self.move("promote")

    @extend_schema(request=shapes.ReasonSerializer)
    @action(detail=True, methods=["post"])
    def rollback(self, request: Request, pk: str) -> Response:
        """Roll back to the stable version for everybody, also after the promotion.

        A second call changes nothing.
        """
        rollout, fields = self.get_object(), self.read(shapes.ReasonSerializer)
        rollout.rollback(by=actor_of(request), expected_tag=wanted_tag(request), **fields)
        return self.write(rollout)

    @extend_schema(request=shapes.TransitionSerializer)
    @action(detail=True, methods=["post"])
    def advance(self, request: Request, pk: str) -> Response:
        """Take the next step of the rollout's plan now."""
        return self.move("advance")

    @extend_schema(responses=OpenApiTypes.OBJECT)
    @action(detail=True)
    def analysis(self, request: Request, pk: str) -> Response:
        """Return the action that the numbers ask for now, and each guardrail's difference with its interval."""
        rollout = self.get_object()
        if not rollout.guardrails:
            return Response({"action": "wait", "reasons": ["It has no guardrails, so people decide."], "findings": []})
        return Response(controller.evidence(controller.judge(rollout, now()), rollout))


class FeedbackViewSet(ProjectViewSet):
    """Feedback of users on an answer, joined to the arm that gave the answer."""

    queryset = models.Feedback.objects.all()
    serializer_class = shapes.FeedbackSerializer
    project_path = "response__project"
    scopes = {"create": Scope.INFER}

    @extend_schema(request=shapes.FeedbackSerializer, responses={201: OpenApiTypes.OBJECT})
    def create(self, request: Request) -> Response:
        """Give feedback on an answer once, by its X-Response-ID.

        422 `unknown_response_id` while the report of the answer has not arrived, which takes seconds.
        """
        fields = self.read(shapes.FeedbackSerializer)
        answer = named_record(self, models.Response, "pk", fields["response_id"], Scope.INFER, "response_id")
        models.Feedback.give(answer, outcome=fields["outcome"], score=fields["score"])
        return Response({**fields, "arm": answer.arm}, 201)
