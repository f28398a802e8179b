"""REST: blind tests. Programs may ask and read; a vote is a person's."""

from __future__ import annotations

from typing import Any, cast

from drf_spectacular.utils import extend_schema, extend_schema_field
from rest_framework import mixins, serializers
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from adapterhub.accounts.models import ApiToken, User
from adapterhub.api.pagination import ByCreation
from adapterhub.api.permissions import actor_of, projects_of, require_scope, scopes_in
from adapterhub.api.views import ProjectViewSet, Retrieving
from adapterhub.core.errors import Invalid, NotAllowed
from adapterhub.core.references import named
from adapterhub.core.tenancy import Scope
from registry.api.fields import reference
from registry.models import Adapter, AdapterVersion, BlindTest
from registry.playground.blind_tests import ask_blindly, view_of
from registry.playground.client import MOST_MODELS, token_for

MOST_PROMPTS = 8
# A plain list: the tests of one request are few, so that they come without pages.
TESTS = {"type": "array", "items": {"$ref": "#/components/schemas/BlindTest"}}


class BlindAnswerSerializer(serializers.Serializer[Any]):
    """One version's answer in a blind test."""

    letter = serializers.CharField()
    text = serializers.CharField()
    number = serializers.IntegerField(allow_null=True, help_text="The version's; null until the caller has voted.")


class PreferenceSerializer(serializers.Serializer[Any]):
    """The votes for one version: their number, and their share of all votes."""

    number = serializers.IntegerField(allow_null=True, help_text="The version's; null = no difference.")
    votes = serializers.IntegerField()
    share = serializers.FloatField()


class BlindTestSerializer(serializers.ModelSerializer[BlindTest]):
    """A blind test, without what the caller may not see yet."""

    adapter = serializers.SlugRelatedField[Adapter](slug_field="slug", read_only=True)
    versions = serializers.ListField(child=serializers.IntegerField(), source="numbers")
    asked_by = serializers.SlugRelatedField[User](slug_field="username", read_only=True)
    answers = serializers.SerializerMethodField()
    votes = serializers.SerializerMethodField()

    class Meta:
        model = BlindTest
        fields = ["id", "adapter", "versions", "prompt", "answers", "votes", "asked_by", "created_at"]

    def view_of(self, test: BlindTest) -> dict[str, Any]:
        """Return the test as the caller may see it: the answers' versions are hidden from a caller who may still vote.

        A token sees what the person behind it may see.
        """
        user = actor_of(self.context["request"]).user
        return view_of(test, user.pk if user else None, self.may_vote(test))

    def may_vote(self, test: BlindTest) -> bool:
        """Return True for a token, or a person with scope infer in the test's project; cached for each project.

        A token itself cannot vote; True lets `view_of` hide what the person behind it may not see yet.
        """
        request = self.context["request"]
        known: dict[int, bool] = cast(dict[str, Any], self.context).setdefault("may_vote", {})
        if isinstance(request.auth, ApiToken):
            return True
        if test.adapter.project_id not in known:
            known[test.adapter.project_id] = Scope.INFER in scopes_in(request, test.project)
        return bool(known[test.adapter.project_id])

    @extend_schema_field(BlindAnswerSerializer(many=True))
    def get_answers(self, test: BlindTest) -> list[dict[str, Any]]:
        """Return the answers, without their versions while the caller may still vote."""
        visible = self.view_of(test)
        return [
            {"letter": each["letter"], "text": each["text"], "number": None if visible["is_open"] else each["number"]}
            for each in visible["answers"]
        ]

    @extend_schema_field(PreferenceSerializer(many=True))
    def get_votes(self, test: BlindTest) -> list[dict[str, Any]]:
        """Return the number and share of the votes for each version, and for no difference (number None).

        They are not hidden from a caller who may still vote, and do not tell which letter is which version.
        """
        votes: list[dict[str, Any]] = self.view_of(test)["votes"]
        return votes


class NewBlindTestSerializer(serializers.Serializer[Any]):
    """The prompts to send and the versions of one adapter that answer them."""

    adapter = reference()
    versions = serializers.ListField(
        child=serializers.IntegerField(min_value=1),
        min_length=2,
        max_length=MOST_MODELS,
        help_text="Numbers of versions of the adapter.",
    )
    prompts = serializers.ListField(child=serializers.CharField(max_length=8000), min_length=1, max_length=MOST_PROMPTS)
    max_tokens = serializers.IntegerField(min_value=1, max_value=1024, default=64)


class VoteSerializer(serializers.Serializer[Any]):
    """A vote: the letter of the best answer, or `none` for no difference."""

    letter = serializers.CharField(
        max_length=4, help_text="The letter of the best answer, or `none` for no difference."
    )


class BlindTestViewSet(ProjectViewSet, mixins.ListModelMixin, Retrieving):
    """Blind tests: one prompt, answered by two to four versions.

    A caller who may vote sees letters before the vote, and the versions after it.
    """

    queryset = BlindTest.objects.select_related("adapter__project", "asked_by").prefetch_related("votes")
    serializer_class = BlindTestSerializer
    pagination_class = ByCreation
    project_path = "adapter__project"
    filters = {"project": "adapter__project__slug", "adapter": "adapter__slug"}
    scopes = {"create": Scope.INFER, "vote": Scope.INFER}

    @extend_schema(request=NewBlindTestSerializer, responses={201: TESTS})
    def create(self, request: Request) -> Response:
        """Create one blind test for each prompt.

        The prompt is sent to every version through the router, with the caller's own token.
        """
        fields = self.read(NewBlindTestSerializer)
        versions = self.named(fields.pop("adapter"), fields.pop("versions"))
        tests = ask_blindly(versions, **fields, token=self.token(versions[0]), by=actor_of(request))
        return Response(self.get_serializer(tests, many=True).data, 201)

    def named(self, slug: str, numbers: list[int]) -> list[AdapterVersion]:
        """Return the two or more versions of the adapter with these numbers.

        Raises Invalid for unknown or repeated numbers or an adapter that the caller does not see, and NotAllowed
        without scope infer.
        """
        adapter = named(Adapter.objects.filter(project__in=projects_of(self.request)), "project", "slug", slug)
        if adapter is None:
            raise Invalid(
                f"There is no adapter {slug!r}, or you cannot see it.", field="adapter", code="unknown_adapter"
            )
        require_scope(self.request, adapter.project, Scope.INFER)
        versions = list(adapter.versions.filter(number__in=numbers).select_related("adapter__project"))
        if len(versions) < 2 or len(versions) != len(numbers):
            raise Invalid(f"Name 2 to {MOST_MODELS} different versions of {slug}.", field="versions")
        return versions

    def token(self, version: AdapterVersion) -> str:
        """Return the token for asking the router: the caller's own, or one for the signed-in person in this project."""
        if isinstance(self.request.auth, ApiToken):
            return self.request.headers["Authorization"].split()[1]
        return token_for(self.request, version.project)

    @extend_schema(request=VoteSerializer)
    @action(detail=True, methods=["post"])
    def vote(self, request: Request, pk: str) -> Response:
        """Record the one vote of a person, which is final.

        The response says which version gave which text. 403 `token_cannot_vote` for a token.
        """
        test = self.get_object()
        if isinstance(request.auth, ApiToken):
            raise NotAllowed("Only a person can vote: sign in.", code="token_cannot_vote")
        test.vote(**self.read(VoteSerializer), by=actor_of(request))
        return self.write(self.get_queryset().get(pk=test.pk))
