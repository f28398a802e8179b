"""Configuration of the application `webhooks`."""

from django.apps import AppConfig


class WebhooksConfig(AppConfig):
    """The application `webhooks`."""

    name = "adapterhub.webhooks"
