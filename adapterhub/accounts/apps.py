"""Configuration of the application `accounts`."""

from typing import Any

from django.apps import AppConfig
from django.conf import settings
from django.contrib.admin.apps import AdminConfig
from django.core.checks import Tags, Warning, register


class HubAdminConfig(AdminConfig):
    """Configuration of the admin pages, with our site."""

    default_site = "adapterhub.accounts.pages.sign_in.HubAdmin"


class AccountsConfig(AppConfig):
    """The application `accounts`."""

    name = "adapterhub.accounts"

    def ready(self) -> None:
        """Register the OpenAPI scheme and connect the receivers of sign-ins."""
        from adapterhub.accounts import oidc, openapi, sessions  # noqa: F401 - their imports register the scheme and the signals


@register(Tags.security, deploy=True)
def check_proxies(**_: Any) -> list[Warning]:
    """Warn of TLS without a named proxy: all callers would share one address, and with it limits and lockouts."""
    if not settings.HTTPS or settings.PROXIES:
        return []
    hint = "Set ADAPTERHUB_PROXIES to the address of the proxy that ends TLS."
    return [Warning("No proxy is named, so that every caller has its address.", hint, id="adapterhub.W001")]
