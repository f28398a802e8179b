from django.apps import AppConfig


class AuditConfig(AppConfig):
    name = "adapterhub.audit"

    def ready(self) -> None:
        from adapterhub.audit import receivers  # noqa: F401 - its import connects them
