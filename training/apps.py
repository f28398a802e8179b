"""Configuration of the application `training`."""

from django.apps import AppConfig


class TrainingConfig(AppConfig):
    """The application `training`."""

    name = "training"

    def ready(self) -> None:
        """Connect the receivers."""
        from training import receivers  # noqa: F401 - its import connects them
