"""The REST resources of invitations: those that a project sent, and those that a person got."""

from __future__ import annotations

from typing import Any, cast

from drf_spectacular.utils import extend_schema
from rest_framework import mixins, serializers, viewsets
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from adapterhub.accounts.invitations import verbs
from adapterhub.accounts.models import Invitation, Membership, Project, User
from adapterhub.api.pagination import ByCreation
from adapterhub.api.permissions import actor_of
from adapterhub.api.reasons import OptionalReasonSerializer
from adapterhub.api.views import ProjectViewSet
from adapterhub.core.errors import Invalid
from adapterhub.core.tenancy import Scope, Tenant


class InvitationSerializer(serializers.ModelSerializer[Invitation]):
    """An invitation, which says nothing of the account that it is for."""

    project = serializers.SlugRelatedField[Project](slug_field="slug", read_only=True)
    invited_by = serializers.SlugRelatedField[User](slug_field="username", read_only=True)
    state = serializers.ChoiceField(Invitation.State.choices, source="state_now", read_only=True)

    class Meta:
        model = Invitation
        fields = ["id", "project", "address", "role", "state", "invited_by", "created_at", "expires_at", "closed_at"]


class NewInvitationSerializer(OptionalReasonSerializer):
    """The person to invite, and the role that is offered."""

    address = serializers.CharField(max_length=254, help_text="A mail address, or a user name.")
    role = serializers.ChoiceField(Membership.Role.choices)


class RevokedInvitationSerializer(OptionalReasonSerializer):
    """The invitation to take back."""

    id = serializers.UUIDField()


class InvitingProjects(viewsets.GenericViewSet[Any]):
    """The invitations of a project, as calls of the project."""

    @extend_schema(responses=InvitationSerializer(many=True))
    @action(detail=True, pagination_class=None)
    def invitations(self, request: Request, slug: str) -> Response:
        """List the invitations that this project sent, newest first."""
        rows = self.get_object().invitations.select_related("project", "invited_by")
        return Response(InvitationSerializer(rows, many=True).data)

    @extend_schema(request=NewInvitationSerializer, responses={201: InvitationSerializer})
    @invitations.mapping.post
    def invite(self, request: Request, slug: str) -> Response:
        """Offer a role to a person, who accepts it within 14 days, or not.

        The answer is the same whether there is such an account or not.
        """
        project = self.get_object()
        fields = cast(ProjectViewSet, self).read(NewInvitationSerializer)
        invitation = verbs.send(project, by=actor_of(request), **fields)
        return Response(InvitationSerializer(invitation).data, 201)

    @extend_schema(request=RevokedInvitationSerializer, responses=InvitationSerializer)
    @action(detail=True, methods=["post"], url_path="invitations/revoke")
    def revoke_invitation(self, request: Request, slug: str) -> Response:
        """Take back an invitation that nobody has accepted yet."""
        project = self.get_object()
        fields = cast(ProjectViewSet, self).read(RevokedInvitationSerializer)
        invitation = project.invitations.filter(pk=fields["id"]).first()
        if invitation is None:
            raise Invalid("There is no such invitation in this project: list them with GET invitations/.", field="id")
        verbs.revoke(invitation, by=actor_of(request), reason=fields["reason"])
        return Response(InvitationSerializer(invitation).data)


class InvitationViewSet(mixins.ListModelMixin, ProjectViewSet):
    """The open invitations to the person who is signed in. Tokens have none."""

    queryset = Invitation.objects.all()
    serializer_class = InvitationSerializer
    pagination_class = ByCreation
    filters = {"role": "role"}
    scopes = {"list": Scope.READ, "accept": Scope.READ, "decline": Scope.READ}

    def get_queryset(self) -> Any:
        """Return the open invitations to the signed-in person; none for a token."""
        if getattr(self, "swagger_fake_view", False) or self.request.auth:
            return Invitation.objects.none()
        return verbs.for_person(cast(User, self.request.user))

    def project_of(self, record: Invitation) -> Tenant | None:
        """Return None, so that no scope of a project is required: an invited person has no role in the project yet."""
        return None

    @extend_schema(request=None, responses=InvitationSerializer)
    @action(detail=True, methods=["post"])
    def accept(self, request: Request, pk: str) -> Response:
        """Take the role that you were offered."""
        invitation = self.get_object()
        verbs.accept(invitation, by=actor_of(request))
        return self.write(invitation)

    @extend_schema(request=None, responses=InvitationSerializer)
    @action(detail=True, methods=["post"])
    def decline(self, request: Request, pk: str) -> Response:
        """Refuse the role that you were offered; the admins of the project see that you did."""
        invitation = self.get_object()
        verbs.decline(invitation, by=actor_of(request))
        return self.write(invitation)
