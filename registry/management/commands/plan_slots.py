"""`manage.py plan_slots CLUSTER --memory-mib N`: check that the cluster's adapter slots fit into a replica's memory."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from adapterhub.core.counts import counted
from adapterhub.core.errors import Invalid
from registry.models import Cluster
from registry.serving.slot_memory import MIB, require_memory


class Command(BaseCommand):
    """Print the memory of a cluster's adapter slots, and fail if a replica has less."""

    help = "Print the memory that a cluster's adapter slots take on a replica, and fail if there is too little."

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the cluster, the memory and the number type."""
        parser.add_argument("cluster")
        parser.add_argument("--memory-mib", type=int, required=True, help="memory available for adapters, in MiB")
        parser.add_argument("--number-bytes", type=int, choices=(2, 4), default=2, help="2 = bfloat16, 4 = float32")

    def handle(self, *, cluster: str, memory_mib: int, number_bytes: int, **_: Any) -> None:
        """Print the memory, in MiB, that the cluster's slots take together on one replica.

        `number_bytes` is the size of one number: 2 for bfloat16, 4 for float32. Raises CommandError if the memory
        exceeds `memory_mib`, or if there is no such cluster.
        """
        record = Cluster.objects.select_related("base_model").filter(slug=cluster).first()
        if record is None:
            raise CommandError(f"There is no cluster {cluster!r}.")
        try:
            needed_bytes = require_memory(record, memory_mib * MIB, number_bytes)
        except Invalid as error:
            raise CommandError(str(error)) from error
        verb = "takes" if record.max_loras == 1 else "take"
        slots = f"{counted(record.max_loras, 'slot')} of rank {record.max_lora_rank}"
        self.stdout.write(f"{slots} {verb} {needed_bytes / MIB:,.1f} MiB.")
