"""Configuration of the application `registry`."""

from django.apps import AppConfig


class RegistryConfig(AppConfig):
    """The application `registry`."""

    name = "registry"

    def ready(self) -> None:
        """Connect the receivers."""
        from registry import receivers  # noqa: F401 - its import connects them
