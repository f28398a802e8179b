"""Configuration of the application `accounts`."""

from django.apps import AppConfig


class AccountsConfig(AppConfig):
    """The application `accounts`."""

    name = "adapterhub.accounts"

    def ready(self) -> None:
        """Register the OpenAPI scheme and connect the receivers of sign-ins."""
        from adapterhub.accounts import oidc, openapi, sessions  # noqa: F401 - their imports register the scheme and the signals
