"""REST: approvals. People sign; tokens may only ask and read."""

from __future__ import annotations

from typing import Any

from drf_spectacular.utils import extend_schema
from rest_framework import mixins, serializers
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from adapterhub.accounts.models import Project
from adapterhub.accounts.signer import client as signer
from adapterhub.accounts.signing_rules import Meaning
from adapterhub.api.pagination import ByCreation
from adapterhub.api.permissions import actor_of, projects_of, require_scope
from adapterhub.api.views import ProjectViewSet, Retrieving
from adapterhub.core.errors import Invalid
from adapterhub.core.references import named
from adapterhub.core.tenancy import APPROVE, Scope
from registry.api.fields import ReasonSerializer, reference
from registry.api.verdicts import VerdictsSerializer
from registry.models import AdapterVersion, Alias, Approval, Rollout, Signature


class SignatureSerializer(serializers.ModelSerializer[Signature]):
    """A person's signature: the decision, its meaning and reason, and the digest of the evidence that was signed.

    `verdicts` are those of the rollout when it was signed; null for a policy, or if the rollout was not open yet.
    """

    verdicts = VerdictsSerializer(allow_null=True)

    class Meta:
        model = Signature
        fields = ["name", "decision", "meaning", "reason", "bound", "verdicts", "auth_method", "at"]


class ApprovalSerializer(serializers.ModelSerializer[Approval]):
    """A request for approval with its evidence and signatures."""

    project = serializers.SlugRelatedField[Project](slug_field="slug", read_only=True)
    alias = serializers.SlugRelatedField[Alias](slug_field="name", read_only=True)
    candidate = serializers.SlugRelatedField[AdapterVersion](slug_field="served_name", read_only=True, allow_null=True)
    signatures = SignatureSerializer(many=True, read_only=True)

    class Meta:
        model = Approval
        fields = [
            "id",
            "project",
            "kind",
            "alias",
            "rollout",
            "candidate",
            "policy",
            "evidence",
            "bound",
            "quorum",
            "reason",
            "author_name",
            "status",
            "review_due_at",
            "created_at",
            "decided_at",
            "signatures",
        ]


class NewApprovalSerializer(serializers.Serializer[Any]):
    """A request to promote a rollout, or to change an alias' policy."""

    rollout = serializers.UUIDField(required=False, help_text="To promote it.")
    alias = reference(required=False, help_text="With `policy`: to change its policy.")
    policy = serializers.DictField(required=False)
    reason = serializers.CharField(max_length=2000)

    def validate(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Check that one subject is named. Raises ValidationError."""
        if ("alias" in fields) != ("policy" in fields):
            missing = "policy" if "alias" in fields else "alias"
            raise serializers.ValidationError({missing: "An alias and its policy go together: name both."})
        if ("rollout" in fields) == ("alias" in fields):
            raise serializers.ValidationError({"rollout": "Name a rollout, or an alias and its policy."})
        return fields


class PersonSerializer(ReasonSerializer):
    """A reason, and the caller's password for signing."""

    password = serializers.CharField(
        required=False,
        default="",
        trim_whitespace=False,
        write_only=True,
        help_text="Your password; not needed if you signed in within the last ten minutes.",
    )


class SigningSerializer(PersonSerializer):
    """A signature: its reason, its meaning, the evidence that the signer read, and the signer's password."""

    meaning = serializers.ChoiceField(Meaning.choices, required=False, default=Meaning.APPROVED)
    seen = serializers.CharField(max_length=64, required=False, default="", help_text="The `bound` that you read.")


class ApprovalViewSet(ProjectViewSet, mixins.ListModelMixin, Retrieving):
    """Requests for approval by a second person, pending and decided, with their signatures."""

    queryset = Approval.objects.select_related("project", "alias", "candidate").prefetch_related("signatures")
    serializer_class = ApprovalSerializer
    pagination_class = ByCreation
    filters = {
        "project": "project__slug",
        "status": "status",
        "kind": "kind",
        "alias": "alias__name",
        "rollout": "rollout",
    }
    scopes = {
        "create": Scope.OPERATE,
        "approve": APPROVE,
        "reject": APPROVE,
        "review": APPROVE,
        "break_glass": Scope.OPERATE,
    }

    @extend_schema(request=NewApprovalSerializer, responses={201: ApprovalSerializer})
    def create(self, request: Request) -> Response:
        """Request approval for promoting a rollout or for changing the policy of an alias."""
        fields = self.read(NewApprovalSerializer)
        by, reason = actor_of(request), fields["reason"]
        if pk := fields.get("rollout"):
            approval = self.named(Rollout, "alias__project", "pk", pk).request_approval(reason=reason, by=by)
        else:
            alias = self.named(Alias, "project", "name", fields["alias"])
            approval = alias.request_policy(fields["policy"], reason=reason, by=by)
        return self.write(approval, 201)

    def named(self, model: Any, path: str, name: str, value: Any) -> Any:
        """Return the alias or rollout whose field `name` is `value`; `path` leads from the model to its project.

        An alias may also be named as `project.alias`. Raises Invalid if the caller does not see it, Conflict if
        several projects have an alias of that name, and NotAllowed without scope operate in its project.
        """
        rows = model.objects.filter(**{f"{path}__in": projects_of(self.request)})
        record = named(rows, path, name, value) if model is Alias else rows.filter(**{name: value}).first()
        if record is None:
            field = model.__name__.lower()
            raise Invalid(f"There is no such {field}, or you cannot see it.", field=field, code=f"unknown_{field}")
        require_scope(self.request, record.project if model is Alias else record.alias.project, Scope.OPERATE)
        return record

    def decide(self, verb: str, shape: type = PersonSerializer) -> Response:
        """Apply `verb`, a method of the approval, with the fields of the body, and return the approval.

        It needs a sign-in within the last ten minutes, or the password in the body.
        """
        approval = self.get_object()
        signer.decide(approval, verb, self.request, **self.read(shape))
        return self.write(approval)

    @extend_schema(request=SigningSerializer)
    @action(detail=True, methods=["post"])
    def approve(self, request: Request, pk: str) -> Response:
        """Approve the request with a signature. Its author cannot sign, and tokens cannot."""
        return self.decide("approve", SigningSerializer)

    @extend_schema(request=PersonSerializer)
    @action(detail=True, methods=["post"])
    def reject(self, request: Request, pk: str) -> Response:
        """Reject the request with a signature; this is final."""
        return self.decide("reject")

    @extend_schema(request=PersonSerializer)
    @action(detail=True, methods=["post"], url_path="break-glass")
    def break_glass(self, request: Request, pk: str) -> Response:
        """Allow the change without signatures, in an emergency. Another person must review it within 24 hours."""
        return self.decide("break_glass")

    @extend_schema(request=PersonSerializer)
    @action(detail=True, methods=["post"])
    def review(self, request: Request, pk: str) -> Response:
        """Sign that you reviewed a change that break-glass allowed without signatures."""
        return self.decide("review")
