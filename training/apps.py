"""Configuration of the application `training`."""

from django.apps import AppConfig


class TrainingConfig(AppConfig):
    """The application `training`."""

    name = "training"

    def ready(self) -> None:
        """Connect the signal receivers, and register erasures with the signer: people approve or reject them."""
        from adapterhub.accounts.signer.kinds import KINDS, Kind, by_method
        from training import receivers  # noqa: F401 - its import connects them
        from training.models import Erasure

        KINDS["erasure"] = Kind(Erasure, ("approve", "reject"), by_method, Erasure.drop_content)
