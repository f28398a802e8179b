"""Configuration of the application `registry`."""

from django.apps import AppConfig
from django.db.models.signals import post_migrate


class RegistryConfig(AppConfig):
    """The application `registry`."""

    name = "registry"

    def ready(self) -> None:
        """Connect the receivers, register approvals with the signer, and set database rights after each migration."""
        from adapterhub.accounts.signer.kinds import KINDS, Kind, by_method
        from adapterhub.accounts.signer.privileges import divide_rights, pin_triggers
        from registry import receivers  # noqa: F401 - its import connects them
        from registry.domain_signals import routes_changed
        from registry.models import Approval

        def follow_up(approval: Approval) -> None:
            routes_changed.send(sender=None, alias=approval.alias_id)

        verbs = ("approve", "reject", "break_glass", "review")
        KINDS["approval"] = Kind(Approval, verbs, by_method, follow_up, fields=("reason", "meaning", "seen"))
        for prepare in (divide_rights, pin_triggers):
            post_migrate.connect(prepare, sender=self)
