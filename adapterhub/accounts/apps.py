from django.apps import AppConfig


class AccountsConfig(AppConfig):
    name = "adapterhub.accounts"

    def ready(self) -> None:
        from adapterhub.accounts import oidc, openapi, sessions  # noqa: F401 - their imports register the scheme and the signals
