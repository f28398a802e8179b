"""Configuration of the application `api`."""

from django.apps import AppConfig


class ApiConfig(AppConfig):
    """The application `api`."""

    name = "adapterhub.api"
