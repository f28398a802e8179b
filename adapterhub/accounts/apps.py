from django.apps import AppConfig


class AccountsConfig(AppConfig):
    name = "adapterhub.accounts"

    def ready(self) -> None:
        from adapterhub.accounts import openapi  # noqa: F401 - its import registers the scheme
