"""Configuration of the application `jobs`."""

from django.apps import AppConfig


class JobsConfig(AppConfig):
    """The application `jobs`."""

    name = "adapterhub.jobs"
