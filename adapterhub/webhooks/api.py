"""The REST resources of webhooks and their deliveries."""

from __future__ import annotations

from typing import Any

from drf_spectacular.utils import extend_schema
from rest_framework import mixins, serializers
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from adapterhub.accounts.models import Project
from adapterhub.api.pagination import ByCreation, NewestFirst
from adapterhub.api.permissions import actor_of, named_project
from adapterhub.api.reasons import OptionalReasonSerializer
from adapterhub.api.views import SHOWN_ONCE, ProjectViewSet, Retrieving, ShownOnce
from adapterhub.core.tenancy import Scope
from adapterhub.webhooks.models import Attempt, Delivery, Webhook


class WebhookSerializer(serializers.ModelSerializer[Webhook]):
    """A webhook without its secret."""

    project = serializers.SlugRelatedField[Project](slug_field="slug", read_only=True)

    class Meta:
        model = Webhook
        fields = ["id", "project", "url", "events", "created_at", "revoked_at"]


class NewWebhookSerializer(serializers.Serializer[Any]):
    """The webhook to create: the URL, the project whose events it receives, and which of them."""

    project = serializers.SlugField()
    url = serializers.CharField(max_length=500, help_text="An https URL at a host that an operator has allowed.")
    events = serializers.ListField(
        child=serializers.CharField(max_length=60), help_text="Tags of the audit trail: rollout:promoted, rollout:*."
    )


class ShownWebhookSerializer(WebhookSerializer):
    """A new webhook with its secret, which no later answer repeats."""

    secret = serializers.CharField(allow_null=True, help_text=f"Verifies the signatures. {SHOWN_ONCE}")

    class Meta(WebhookSerializer.Meta):
        fields = [*WebhookSerializer.Meta.fields, "secret"]


class AttemptSerializer(serializers.ModelSerializer[Attempt]):
    """One attempt of a delivery."""

    class Meta:
        model = Attempt
        fields = ["number", "at", "answer", "error"]


class DeliverySerializer(serializers.ModelSerializer[Delivery]):
    """A delivery with its attempts."""

    type = serializers.CharField(source="event.tag")
    log = AttemptSerializer(many=True)

    class Meta:
        model = Delivery
        fields = ["id", "webhook", "type", "status", "attempts", "next_at", "created_at", "log"]


class WebhookViewSet(ProjectViewSet, mixins.ListModelMixin, Retrieving):
    """Webhooks: addresses that receive the events of a project."""

    queryset = Webhook.objects.select_related("project")
    serializer_class = WebhookSerializer
    pagination_class = ByCreation
    filters = {"project": "project__slug"}
    scopes = dict.fromkeys(("list", "retrieve", "create", "revoke"), Scope.ADMIN)

    @extend_schema(request=NewWebhookSerializer, responses={201: ShownWebhookSerializer})
    def create(self, request: Request) -> Response:
        """Create a webhook. Its secret is in this response and never again."""
        fields = self.read(NewWebhookSerializer)
        project = named_project(request, fields.pop("project"), Scope.ADMIN)
        webhook = Webhook.create(project, **fields, by=actor_of(request))
        return ShownOnce(ShownWebhookSerializer(webhook).data, 201, once="secret")

    @extend_schema(request=OptionalReasonSerializer)
    @action(detail=True, methods=["post"])
    def revoke(self, request: Request, pk: str) -> Response:
        """Stop deliveries to the webhook; a second call changes nothing."""
        webhook = self.get_object()
        webhook.revoke(by=actor_of(request), **self.read(OptionalReasonSerializer))
        return self.write(webhook)


class DeliveryViewSet(ProjectViewSet, mixins.ListModelMixin, Retrieving):
    """Deliveries of webhooks, past and pending, with each attempt."""

    queryset = Delivery.objects.select_related("webhook__project", "event").prefetch_related("log")
    serializer_class = DeliverySerializer
    pagination_class = NewestFirst
    project_path = "webhook__project"
    filters = {"project": "webhook__project__slug", "webhook": "webhook", "status": "status", "type": "event__tag"}
    scopes = dict.fromkeys(("list", "retrieve", "redeliver"), Scope.ADMIN)

    @extend_schema(request=None)
    @action(detail=True, methods=["post"])
    def redeliver(self, request: Request, pk: str) -> Response:
        """Send the delivery again soon, with the same id.

        409 `invalid_transition` if the webhook was revoked.
        """
        delivery = self.get_object()
        delivery.redeliver(by=actor_of(request))
        return self.write(delivery)
