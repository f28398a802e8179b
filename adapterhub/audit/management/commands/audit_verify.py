"""`manage.py audit_verify [--checkpoints DIR --public-key FILE]`: verify every chain; exit 1 if one is broken."""

from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from adapterhub.audit.external.proof import ALL, Verdict, judged
from adapterhub.audit.verifier import INSTALLATION, Checkpoint, Unreadable, read_checkpoints, read_public_key
from adapterhub.core.counts import counted
from adapterhub.core.tenancy import Tenant, project_model


class Command(BaseCommand):
    """Verify each project's chain and the installation's: exit 1 for a fault, 2 for unreadable checkpoints.

    Each is compared with the checkpoints of the database, of a folder, and of the witnesses, over the network.
    """

    help = "Verify the hash chain of every project, against the checkpoints of the database and of a folder."

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the folder of checkpoints and the public key that verifies them."""
        parser.add_argument("--checkpoints", type=Path, help="folder of checkpoints stored outside the database")
        parser.add_argument("--public-key", type=Path, help="the key they were signed with; needed with --checkpoints")

    def handle(self, *, checkpoints: Path | None, public_key: Path | None, **_: Any) -> None:
        """Verify and report every chain. Raises CommandError if there is a fault."""
        outside = self.read(checkpoints, public_key) if checkpoints else []
        broken = sum(self.report(project, outside) for project in [None, *project_model().objects.all()])
        if broken:
            raise CommandError(
                f"{counted(broken, 'event is', 'events are')} not intact: compare with a backup or an earlier export."
            )

    def read(self, folder: Path, public_key: Path | None) -> list[Checkpoint]:
        """Return the checkpoints in the folder, verified.

        Raises CommandError if they cannot be read or the key is missing.
        """
        if public_key is None:
            raise CommandError("--public-key is missing: name the key that signed the checkpoints.", returncode=2)
        try:
            return read_checkpoints(folder, read_public_key(public_key))
        except Unreadable as error:
            raise CommandError(str(error), returncode=2) from error

    def report(self, project: Tenant | None, outside: list[Checkpoint]) -> int:
        """Print the verdict on a project's chain; return the number of its faults."""
        name = project.slug if project else INSTALLATION
        verdict = judged(project, [point for point in outside if point.project == name], ALL)
        for fault in verdict.faults:
            self.stdout.write(f"{name}: event {fault.sequence} {fault.kind}")
        if not verdict.faults:
            self.stdout.write(f"{name}: {counted(verdict.events, 'event')} intact, their times in order")
        self.tell_reach(name, verdict)
        return len(verdict.faults)

    def tell_reach(self, name: str, verdict: Verdict) -> None:
        """Print up to which event each witness has proof, and how many events nobody outside has proof of."""
        for proof in verdict.proofs:
            proved = proof.trouble or f"event {proof.sequence}, signed {proof.at or 'never'}"
            self.stdout.write(f"{name}: witnessed by {proof.witness}: {proved}")
        if not verdict.proofs:
            self.stdout.write(f"{name}: no witness outside: set ADAPTERHUB_AUDIT_WITNESSES, or give --checkpoints")
        if verdict.by_chain_alone:
            one, several = f"event after {verdict.witnessed} is held", f"events after {verdict.witnessed} are held"
            events = counted(verdict.by_chain_alone, one, several)
            self.stdout.write(f"{name}: {events} by the chain alone (signed here up to {verdict.signed})")
