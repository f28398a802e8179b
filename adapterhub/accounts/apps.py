"""Configuration of the application `accounts`."""

from typing import Any

from django.apps import AppConfig
from django.conf import settings
from django.contrib.admin.apps import AdminConfig
from django.core.checks import Tags, Warning, register


class HubAdminConfig(AdminConfig):
    """Configuration of the admin pages, which makes HubAdmin their site."""

    default_site = "adapterhub.accounts.pages.sign_in.HubAdmin"


class AccountsConfig(AppConfig):
    """The application `accounts`."""

    name = "adapterhub.accounts"

    def ready(self) -> None:
        """Register the OpenAPI scheme, connect the receivers of sign-ins, and let the signer approve tokens."""
        from adapterhub.accounts import oidc, openapi, sessions  # noqa: F401 - their imports register the scheme and the signals
        from adapterhub.accounts.models import ApiToken
        from adapterhub.accounts.signer.kinds import KINDS, Kind
        from adapterhub.accounts.tokens import approve
        from adapterhub.core.domain_signals import token_approved

        def carry_out(token: ApiToken, verb: str, **fields: Any) -> None:
            approve(token, **fields)

        def follow_up(token: ApiToken) -> None:
            token_approved.send(sender=None)

        KINDS["token"] = Kind(ApiToken, ("approve",), carry_out, follow_up)


@register(Tags.security, deploy=True)
def check_proxies(**_: Any) -> list[Warning]:
    """Return a warning if HTTPS is on without a named proxy; else an empty list.

    All callers would share the proxy's address then, and with it limits and lockouts.
    """
    if not settings.HTTPS or settings.PROXIES:
        return []
    hint = "Set ADAPTERHUB_PROXIES to the address of the proxy that ends TLS."
    return [Warning("No proxy is named, so that every caller has its address.", hint, id="adapterhub.W001")]
