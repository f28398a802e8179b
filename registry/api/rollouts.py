"""REST: rollouts, and users' feedback on answers."""

from __future__ import annotations

from math import isfinite
from typing import Any

from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema, extend_schema_field
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from adapterhub.api.etags import require_tag, wanted_tag
from adapterhub.api.pagination import ByCreation
from adapterhub.api.permissions import actor_of
from adapterhub.api.views import ProjectViewSet
from adapterhub.core.errors import Conflict, PreconditionFailed
from adapterhub.core.tenancy import Scope
from registry import models
from registry.api.fields import ReasonSerializer, reference, slug_of
from registry.api.resources import Reading, named_record
from registry.api.rollout_plan import ChecksSerializer, GuardrailSerializer, StepSerializer, TargetingSerializer
from registry.api.verdicts import DecisionSerializer, VerdictsSerializer
from registry.models import AdapterVersion, Alias, Feedback, Rollout
from registry.models.decision import verdicts_of
from registry.models.feedback import Outcome


class RolloutSerializer(serializers.ModelSerializer[Rollout]):
    """A rollout with its versions, its plan and its state."""

    alias = slug_of("name")
    stable = slug_of("served_name")
    candidate = slug_of("served_name")
    verdicts = serializers.SerializerMethodField()

    @extend_schema_field(VerdictsSerializer(allow_null=True))
    def get_verdicts(self, rollout: Rollout) -> dict[str, Any] | None:
        """Verdicts as they were frozen with the decision that ended the rollout; null until it has ended."""
        last = list(rollout.decisions.all())[-1:] if rollout.ended_at else []
        return dict(last[0].verdicts) if last else None

    class Meta:
        model = Rollout
        fields = [
            "id",
            "alias",
            "stable",
            "candidate",
            "status",
            "status_reason",
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
            "verdicts",
        ]


class NewRolloutSerializer(serializers.Serializer[Any]):
    """The rollout to open, or to store as a draft."""

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
    """The reason for a transition, and the generation that the caller expects, as a condition."""

    reason = serializers.CharField(max_length=2000)
    expected_generation = serializers.IntegerField(required=False, min_value=1)


class EditRolloutSerializer(TransitionSerializer):
    """The parts of a draft's plan to change; what is left out stays."""

    steps = StepSerializer(many=True, allow_empty=False, required=False)
    guardrails = GuardrailSerializer(many=True, required=False)
    checks = ChecksSerializer(required=False)
    targeting = TargetingSerializer(required=False)


class WeightSerializer(TransitionSerializer):
    """The candidate's new share, in percent of the users, with a reason."""

    weight = serializers.FloatField(min_value=0, max_value=100)


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

    queryset = Rollout.objects.select_related(
        "alias__project", "stable__adapter", "candidate__adapter"
    ).prefetch_related("decisions")
    serializer_class = RolloutSerializer
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
    scopes = {**dict.fromkeys(VERBS, Scope.OPERATE), "analysis": Scope.READ, "decisions": Scope.READ}

    @extend_schema(request=NewRolloutSerializer, responses={201: RolloutSerializer})
    def create(self, request: Request) -> Response:
        """Open a rollout, or store it as a draft.

        An open rollout starts when every healthy replica holds the candidate.
        """
        fields = self.read(NewRolloutSerializer)
        alias = named_record(self, Alias, "name", fields["alias"], Scope.OPERATE, "alias")
        candidate = named_record(self, AdapterVersion, "served_name", fields["candidate"], Scope.READ, "candidate")
        steps = [dict(step) for step in fields["steps"]]
        rollout = Rollout.create(
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

    @extend_schema(request=EditRolloutSerializer)
    def partial_update(self, request: Request, pk: str) -> Response:
        """Change parts of the plan of a draft."""
        return self.move("edit", EditRolloutSerializer)

    def move(self, verb: str, shape: type = TransitionSerializer) -> Response:
        """Call the rollout's method `verb` with the body's fields, and return the changed rollout.

        `shape` is the body's serializer. A generation in If-Match or in the body is a condition: PreconditionFailed if
        that in If-Match is not the rollout's, Conflict if that in the body is not.
        """
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

    @extend_schema(request=TransitionSerializer)
    @action(detail=True, methods=["post"])
    def start(self, request: Request, pk: str) -> Response:
        """Open a draft with its plan as it is."""
        return self.move("start")

    @extend_schema(request=TransitionSerializer)
    @action(detail=True, methods=["post"])
    def discard(self, request: Request, pk: str) -> Response:
        """Discard a draft: end it without starting it."""
        return self.move("discard")

    @extend_schema(request=TransitionSerializer)
    @action(detail=True, methods=["post"])
    def pause(self, request: Request, pk: str) -> Response:
        """Pause the rollout: the stable version serves everybody until it is resumed."""
        return self.move("pause")

    @extend_schema(request=TransitionSerializer)
    @action(detail=True, methods=["post"])
    def resume(self, request: Request, pk: str) -> Response:
        """Resume a paused rollout with the same weight and salt, so that each user gets the same version as before."""
        return self.move("resume")

    @extend_schema(request=WeightSerializer)
    @action(detail=True, methods=["post"], url_path="set-weight")
    def set_weight(self, request: Request, pk: str) -> Response:
        """Change the share of users, in percent, whom the candidate of an active rollout serves."""
        return self.move("set_weight", WeightSerializer)

    @extend_schema(request=TransitionSerializer)
    @action(detail=True, methods=["post"])
    def promote(self, request: Request, pk: str) -> Response:
        """Promote the candidate: it serves everybody from now on."""
        return self.move("promote")

    @extend_schema(request=ReasonSerializer)
    @action(detail=True, methods=["post"])
    def rollback(self, request: Request, pk: str) -> Response:
        """Return to the stable version for everybody, also after the promotion.

        A second call changes nothing. With If-Match it happens only in the state that the tag names.
        """
        rollout, fields = self.get_object(), self.read(ReasonSerializer)
        rollout.rollback(by=actor_of(request), expected_tag=wanted_tag(request), **fields)
        return self.write(rollout)

    @extend_schema(request=TransitionSerializer)
    @action(detail=True, methods=["post"])
    def advance(self, request: Request, pk: str) -> Response:
        """Start the next step of the rollout's plan now."""
        return self.move("advance")

    @extend_schema(responses=VerdictsSerializer)
    @action(detail=True)
    def analysis(self, request: Request, pk: str) -> Response:
        """Return the action that the numbers call for, and each guardrail's difference with its interval.

        They are computed now; for a paused or ended rollout they are those that were frozen with the decision.
        """
        nothing = {"action": "wait", "reasons": ["It has not been started."], "findings": [], "unmet": []}
        return Response(verdicts_of(self.get_object()) or nothing)

    @extend_schema(responses=DecisionSerializer(many=True))
    @action(detail=True, pagination_class=None)
    def decisions(self, request: Request, pk: str) -> Response:
        """List the decisions on the rollout, oldest first, each with the verdicts on which it was made."""
        return Response(DecisionSerializer(self.get_object().decisions.all(), many=True).data)


class FeedbackSerializer(serializers.Serializer[Any]):
    """A person's judgement of an answer: good or bad, a score, or both."""

    response_id = serializers.CharField(max_length=64)
    outcome = serializers.ChoiceField(choices=Outcome.choices, required=False, default="")
    score = serializers.FloatField(required=False, allow_null=True, default=None)

    def validate(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Check that an outcome or a finite score is given, and return the fields. Raises ValidationError."""
        score = fields["score"]
        if score is not None and not isfinite(score):
            raise serializers.ValidationError({"score": "Enter a finite number."})
        if not fields["outcome"] and score is None:
            raise serializers.ValidationError({"outcome": "Give an outcome (good or bad), a score, or both."})
        return fields


class FeedbackViewSet(ProjectViewSet):
    """Feedback of users on an answer, joined to the arm that gave the answer."""

    queryset = Feedback.objects.all()
    serializer_class = FeedbackSerializer
    project_path = "response__project"
    scopes = {"create": Scope.INFER}

    @extend_schema(request=FeedbackSerializer, responses={201: OpenApiTypes.OBJECT})
    def create(self, request: Request) -> Response:
        """Give feedback on an answer once, by its X-Response-ID.

        422 `unknown_response_id` while the report of the answer has not arrived, which takes seconds.
        """
        fields = self.read(FeedbackSerializer)
        answer = named_record(self, models.Response, "pk", fields["response_id"], Scope.INFER, "response_id")
        Feedback.give(answer, outcome=fields["outcome"], score=fields["score"])
        return Response({**fields, "arm": answer.arm}, 201)
