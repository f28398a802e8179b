"""Configuration of the project's own application."""

from django.apps import AppConfig


class AdapterHubConfig(AppConfig):
    """The app of the project root, which provides static files and loads the Celery application in every process."""

    name = "adapterhub"

    def ready(self) -> None:
        """Create the Celery application."""
        # Tasks are shared: without the application they would go to Celery's default broker.
        from adapterhub import celery  # noqa: F401
