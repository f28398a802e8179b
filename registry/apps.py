"""Configuration of the application `registry`."""

from django.apps import AppConfig
from django.db.models.signals import post_migrate


class RegistryConfig(AppConfig):
    """The application `registry`."""

    name = "registry"

    def ready(self) -> None:
        """Connect the receivers."""
        from registry import receivers  # noqa: F401 - its import connects them
        from registry.signer.privileges import divide_rights

        post_migrate.connect(divide_rights, sender=self)
