"""Configuration of the application `audit`."""

from django.apps import AppConfig


class AuditConfig(AppConfig):
    """The application `audit`."""

    name = "adapterhub.audit"

    def ready(self) -> None:
        """Connect the receivers of the signals that the audit trail records."""
        from adapterhub.audit import receivers  # noqa: F401 - its import connects them
