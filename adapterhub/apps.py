from django.apps import AppConfig


class AdapterHubConfig(AppConfig):
    """The project root as an app: its static files, and the Celery application in every process."""

    name = "adapterhub"

    def ready(self) -> None:
        # Tasks are shared: without the application they would go to Celery's default broker.
        from adapterhub import celery  # noqa: F401
