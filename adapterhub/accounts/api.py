"""The REST resources of projects, members, tokens and service accounts."""

from __future__ import annotations

from typing import Any

from django.db import transaction
from django.db.models import Prefetch
from drf_spectacular.utils import extend_schema
from rest_framework import mixins, serializers, viewsets
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from adapterhub.accounts import memberships, project_limits, service_accounts, tokens
from adapterhub.accounts.invitations.api import InvitingProjects
from adapterhub.accounts.models import ApiToken, Membership, NamedVersions, Project, User
from adapterhub.accounts.service_accounts import NAMED
from adapterhub.accounts.signer import client as signer
from adapterhub.accounts.signing_rules import Meaning, require_fresh_sign_in
from adapterhub.api.pagination import ByCreation
from adapterhub.api.permissions import (
    actor_of,
    named_project,
    projects_of,
    projects_with,
    scopes_in,
)
from adapterhub.api.reasons import OptionalReasonSerializer
from adapterhub.api.views import SHOWN_ONCE, ProjectViewSet, Retrieving, ShownOnce
from adapterhub.core.errors import Invalid, NotAllowed
from adapterhub.core.tenancy import APPROVE, Scope


class ProjectSerializer(serializers.ModelSerializer[Project]):
    """A project: its slug, its name, which versions callers of the router may name, and its own limits there."""

    class Meta:
        model = Project
        fields = ["slug", "name", "named_versions", *tokens.LIMITS, "archived_at", "created_at"]
        read_only_fields = ["named_versions", *tokens.LIMITS, "archived_at", "created_at"]
        extra_kwargs: dict[str, Any] = {"slug": {"validators": []}}


class LimitsSerializer(serializers.Serializer[Any]):
    """Limits at the routers; null means no limit of its own."""

    requests_per_s = serializers.FloatField(min_value=0.001, max_value=1e6, required=False, allow_null=True)
    tokens_per_min = serializers.IntegerField(
        min_value=1,
        max_value=2**31 - 1,
        required=False,
        allow_null=True,
        help_text="Tokens of questions and answers.",
    )


class ProjectChangeSerializer(LimitsSerializer):
    """A change of a project's settings, and why; a setting that is not named stays as it is."""

    named_versions = serializers.ChoiceField(
        NamedVersions.choices,
        required=False,
        help_text="Versions that callers may name, of adapters with a protected alias.",
    )
    reason = serializers.CharField(max_length=2000)
    password = serializers.CharField(
        required=False,
        default="",
        trim_whitespace=False,
        write_only=True,
        help_text="Your password, for named_versions; not needed if you signed in within the last ten minutes.",
    )


class MemberSerializer(serializers.ModelSerializer[Membership]):
    """A user's role in a project."""

    user = serializers.SlugRelatedField[User](slug_field="username", read_only=True)

    class Meta:
        model = Membership
        fields = ["user", "role"]


class NewMemberSerializer(serializers.Serializer[Any]):
    """A further role of a member."""

    # Never looked up among all accounts: an unknown name would get another answer than that of a stranger.
    user = serializers.CharField(max_length=150, help_text="User name of a member.")
    role = serializers.ChoiceField(Membership.Role.choices)


class RevokedMemberSerializer(OptionalReasonSerializer, NewMemberSerializer):
    """The role to revoke, and the reason."""


def account_name(**options: Any) -> serializers.RegexField:
    """Return a serializer field for the name of a service account, with or without its project."""
    return serializers.RegexField(NAMED, max_length=150, help_text="As `ci`, or in full as `eu/ci`.", **options)


class AccountNameSerializer(OptionalReasonSerializer):
    """The name of a service account, and the reason for closing it."""

    name = account_name()


class HandOverSerializer(serializers.Serializer[Any]):
    """A new owner of a service account."""

    name = account_name()
    owner = serializers.CharField(max_length=150, help_text="The member who answers for it from now on.")
    reason = serializers.CharField(max_length=2000)


class MemberRoleSerializer(serializers.ModelSerializer[Membership]):
    """A role and its project."""

    project = serializers.SlugRelatedField[Project](slug_field="slug", read_only=True)

    class Meta:
        model = Membership
        fields = ["project", "role"]


class ServiceAccountSerializer(serializers.ModelSerializer[User]):
    """A service account with its owner and its roles."""

    name = serializers.CharField(source="username")
    owner = serializers.SlugRelatedField[User](
        slug_field="username", read_only=True, allow_null=True, help_text="The person who answers for it."
    )
    roles = MemberRoleSerializer(source="memberships", many=True, read_only=True)

    class Meta:
        model = User
        fields = ["name", "owner", "roles"]


class ProjectsViewSet(InvitingProjects, ProjectViewSet, mixins.ListModelMixin, Retrieving):
    """Projects, the tenants. A superuser creates a project; a caller with scope `admin` manages its members."""

    queryset = Project.objects.all()
    serializer_class = ProjectSerializer
    lookup_field = "slug"
    filters = {"slug": "slug"}
    scopes = {
        "create": Scope.ADMIN,
        "partial_update": Scope.ADMIN,
        "members": Scope.READ,
        "add_member": Scope.ADMIN,
        "invitations": Scope.ADMIN,
        "invite": Scope.ADMIN,
        "revoke_invitation": Scope.ADMIN,
        "revoke_member": Scope.ADMIN,
        "close_account": Scope.ADMIN,
        "hand_over_account": Scope.ADMIN,
    }

    def get_queryset(self) -> Any:
        """Return the projects that the caller sees."""
        return Project.objects.none() if getattr(self, "swagger_fake_view", False) else projects_of(self.request)

    def project_of(self, project: Project) -> Project:
        """Return the project itself: the caller's scopes in it decide."""
        return project

    def create(self, request: Request) -> Response:
        """Open a project. Only a signed-in administrator of the installation may; tokens cannot."""
        fields = self.read(ProjectSerializer)
        if not request.user.is_superuser or request.auth:
            raise NotAllowed("Only an administrator of the installation who is signed in can create projects.")
        return self.write(memberships.create_project(by=actor_of(request), **fields), 201)

    @extend_schema(request=ProjectChangeSerializer, responses=ProjectSerializer)
    def partial_update(self, request: Request, slug: str) -> Response:
        """Choose the versions that callers may name, or what routers take of the project: requests, tokens.

        For the versions a signed-in person needs a fresh sign-in or the password; a token of scope `admin` needs
        neither, as a second person approved it.
        """
        project = self.get_object()
        fields = self.read(ProjectChangeSerializer)
        limits = {name: fields[name] for name in tokens.LIMITS if name in fields}
        who = {"reason": fields["reason"], "by": actor_of(request)}
        if not limits and "named_versions" not in fields:
            raise Invalid(f"Name a setting to change: named_versions, {', '.join(tokens.LIMITS)}.")
        with transaction.atomic():
            if "named_versions" in fields:
                if not request.auth:
                    require_fresh_sign_in(request, fields["password"])
                memberships.set_named_versions(project, fields["named_versions"], **who)
            if limits:
                project_limits.limit(project, **who, **limits)
        return self.write(project)

    @extend_schema(responses=MemberSerializer(many=True))
    @action(detail=True, pagination_class=None)
    def members(self, request: Request, slug: str) -> Response:
        """List the members of a project with their roles."""
        return Response(MemberSerializer(self.get_object().memberships.select_related("user"), many=True).data)

    @extend_schema(request=NewMemberSerializer, responses={201: MemberSerializer})
    @members.mapping.post
    def add_member(self, request: Request, slug: str) -> Response:
        """Grant a member a further role. Others are invited: invitations/."""
        project = self.get_object()
        fields = self.read(NewMemberSerializer)
        membership = memberships.grant_further(project, fields["user"], fields["role"], by=actor_of(request))
        return Response(MemberSerializer(membership).data, 201)

    @extend_schema(request=RevokedMemberSerializer, responses={204: None})
    @action(detail=True, methods=["post"], url_path="members/revoke")
    def revoke_member(self, request: Request, slug: str) -> Response:
        """Revoke a role of a member in the project."""
        project = self.get_object()
        fields = self.read(RevokedMemberSerializer)
        membership = memberships.role_held(project, fields["user"], fields["role"])
        memberships.revoke(membership, by=actor_of(request), reason=fields["reason"])
        return Response(status=204)

    @extend_schema(request=AccountNameSerializer, responses={204: None})
    @action(detail=True, methods=["post"], url_path="service-accounts/close")
    def close_account(self, request: Request, slug: str) -> Response:
        """Revoke the tokens of a service account in this project, and take its roles here; the body names the account.

        An account that has no role left in any project is closed. Raises Invalid for an account not active here.
        """
        project = self.get_object()
        fields = self.read(AccountNameSerializer)
        account = service_accounts.named(project, fields["name"])
        service_accounts.close(account, project, by=actor_of(request), reason=fields["reason"])
        return Response(status=204)

    @extend_schema(request=HandOverSerializer, responses=ServiceAccountSerializer)
    @action(detail=True, methods=["post"], url_path="service-accounts/hand-over")
    def hand_over_account(self, request: Request, slug: str) -> Response:
        """Make another member the owner of a service account. Owners cannot sign what their accounts ask for."""
        project = self.get_object()
        fields = self.read(HandOverSerializer)
        account = service_accounts.named(project, fields["name"])
        owner = service_accounts.owner_named(project, fields["owner"])
        service_accounts.hand_over(account, owner, project, by=actor_of(request), reason=fields["reason"])
        return Response(ServiceAccountSerializer(account).data)


class TokenSerializer(serializers.ModelSerializer[ApiToken]):
    """A token without its secret."""

    project = serializers.SlugRelatedField[Project](slug_field="slug", read_only=True)
    account = serializers.SlugRelatedField[User](slug_field="username", read_only=True, allow_null=True)
    approved_by = serializers.SlugRelatedField[User](slug_field="username", read_only=True, allow_null=True)

    class Meta:
        model = ApiToken
        fields = [
            "id",
            "name",
            "project",
            "account",
            "scopes",
            "reason",
            "needs_approval",
            "approved_by",
            "approved_at",
            "created_at",
            "expires_at",
            "revoked_at",
            "last_used_at",
            *tokens.LIMITS,
        ]


class ChangedTokenSerializer(LimitsSerializer):
    """The token's new limits, and why; a limit that is not named stays as it is."""

    reason = serializers.CharField(max_length=2000)


class NewTokenSerializer(LimitsSerializer):
    """The token to create: name, project, scopes, expiry and limits, and the service account that it is for, if any."""

    project = serializers.SlugField()
    name = serializers.CharField(max_length=200)
    scopes = serializers.ListField(child=serializers.ChoiceField(Scope.choices), allow_empty=False)
    expires_at = serializers.DateTimeField(required=False)
    account = account_name(required=False)
    reason = serializers.CharField(required=False, max_length=2000, help_text="Needed for scope `admin`.")


class SigningTokenSerializer(serializers.Serializer[Any]):
    """A signature: its reason, its meaning and the signer's password."""

    reason = serializers.CharField(max_length=2000)
    meaning = serializers.ChoiceField(Meaning.choices, required=False, default=Meaning.APPROVED)
    password = serializers.CharField(required=False, default="", trim_whitespace=False, write_only=True)


class ShownTokenSerializer(TokenSerializer):
    """A new token with its text, which no later answer repeats."""

    token = serializers.CharField(allow_null=True, help_text=SHOWN_ONCE)

    class Meta(TokenSerializer.Meta):
        fields = [*TokenSerializer.Meta.fields, "token"]


class TokenViewSet(ProjectViewSet, mixins.ListModelMixin, viewsets.GenericViewSet[Any]):
    """API tokens of a project."""

    queryset = ApiToken.objects.select_related("project", "account", "approved_by")
    serializer_class = TokenSerializer
    pagination_class = ByCreation
    filters = {"project": "project__slug", "name": "name", "account": "account__username"}
    scopes = {
        "list": Scope.ADMIN,
        "create": Scope.ADMIN,
        "partial_update": Scope.ADMIN,
        "revoke": Scope.ADMIN,
        "approve": APPROVE,
    }

    @extend_schema(request=NewTokenSerializer, responses={201: ShownTokenSerializer})
    def create(self, request: Request) -> Response:
        """Create a token. Its text is in this response and never again.

        A token of scope `admin` waits for an approval.
        """
        fields = self.read(NewTokenSerializer)
        project = named_project(request, fields.pop("project"), Scope.ADMIN)
        if beyond := set(fields["scopes"]) - scopes_in(request, project):
            raise Invalid(f"You cannot grant scopes that you do not have: {', '.join(sorted(beyond))}.", field="scopes")
        if name := fields.pop("account", ""):
            fields["account"] = service_accounts.named(project, name)
        token, text = tokens.create(project, by=actor_of(request), **fields)
        return ShownOnce({**TokenSerializer(token).data, "token": text}, 201, once="token")

    @extend_schema(request=ChangedTokenSerializer)
    def partial_update(self, request: Request, pk: str) -> Response:
        """Change what the token may take of the routers: requests a second, tokens a minute."""
        token = self.get_object()
        tokens.limit(token, by=actor_of(request), **self.read(ChangedTokenSerializer))
        return self.write(token)

    @extend_schema(request=OptionalReasonSerializer)
    @action(detail=True, methods=["post"])
    def revoke(self, request: Request, pk: str) -> Response:
        """Revoke the token: requests that carry it are refused from now on."""
        token = self.get_object()
        tokens.revoke(token, by=actor_of(request), **self.read(OptionalReasonSerializer))
        return self.write(token)

    @extend_schema(request=SigningTokenSerializer)
    @action(detail=True, methods=["post"])
    def approve(self, request: Request, pk: str) -> Response:
        """Approve a token of scope `admin`. Its author cannot approve it, and tokens cannot."""
        token = self.get_object()
        fields = self.read(SigningTokenSerializer)
        signer.decide(token, "approve", request, **fields)
        return self.write(token)


class NewAccountSerializer(serializers.Serializer[Any]):
    """The service account to create."""

    project = serializers.SlugField()
    name = serializers.SlugField(
        max_length=service_accounts.LONGEST_NAME, help_text="`ci` in project `eu` is called `eu/ci` from then on."
    )
    role = serializers.ChoiceField(service_accounts.ROLES)


class ServiceAccountViewSet(ProjectViewSet):
    """Service accounts: names for programs, which have roles and tokens and never sign in."""

    queryset = User.objects.filter(is_service=True, is_active=True)
    serializer_class = ServiceAccountSerializer
    filters = {"name": "username"}
    scopes = {"list": Scope.ADMIN, "create": Scope.ADMIN}

    @extend_schema(responses=ServiceAccountSerializer(many=True))
    def list(self, request: Request) -> Response:
        """List the active service accounts of the projects that the caller administers."""
        led = projects_with(request, Scope.ADMIN)
        memberships = Prefetch("memberships", Membership.objects.filter(project__in=led).select_related("project"))
        accounts = self.filter_queryset(service_accounts.of(led)).select_related("owner").prefetch_related(memberships)
        return Response({"results": ServiceAccountSerializer(accounts, many=True).data})

    @extend_schema(request=NewAccountSerializer, responses={201: ServiceAccountSerializer})
    def create(self, request: Request) -> Response:
        """Create a service account with a role in a project."""
        fields = self.read(NewAccountSerializer)
        project = named_project(request, fields.pop("project"), Scope.ADMIN)
        return self.write(service_accounts.create(project, by=actor_of(request), **fields), 201)
