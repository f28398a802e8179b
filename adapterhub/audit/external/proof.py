"""The verdict on a chain: its faults, and up to which event somebody outside this installation has proof of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from adapterhub.audit.external.witnesses import Away, configured
from adapterhub.audit.models import Checkpoint, chain_name, verify
from adapterhub.audit.verifier import Checkpoint as SignedHead
from adapterhub.audit.verifier import Fault, Unreadable
from adapterhub.core.tenancy import Tenant, row_of

# Newest checkpoints of each witness that a verification over HTTP reads; a command reads them all.
FEW, ALL = 50, 10**9


@dataclass(frozen=True)
class Proof:
    """The proof of one witness: it has kept the chain's checkpoint at `sequence`, made at `at`.

    `sequence` is 0 and `at` None without a checkpoint; `trouble` is then the reason, if the witness could not be read.
    """

    witness: str
    sequence: int = 0
    at: datetime | None = None
    trouble: str = ""


@dataclass(frozen=True)
class Verdict:
    """The result of a verification of one chain: its number of events, its faults, and a proof by each witness.

    `project` is the chain's name, and `signed` the sequence of the database's newest checkpoint, or 0.
    """

    project: str
    events: int
    faults: list[Fault]
    signed: int
    proofs: list[Proof] = field(default_factory=list)

    @property
    def witnessed(self) -> int:
        """Return the sequence of the last event of which somebody outside has proof; 0 if nobody has."""
        return min(self.events, max((proof.sequence for proof in self.proofs), default=0))

    @property
    def by_chain_alone(self) -> int:
        """Return the number of events after the last witnessed one, of which only the chain itself is proof."""
        return self.events - self.witnessed


def judged(project: Tenant | None, outside: list[SignedHead], newest: int = FEW) -> Verdict:
    """Return the verdict on the chain, verified against the checkpoints of the database, the witnesses and `outside`.

    `outside` holds checkpoints that the caller kept; `newest` is the number of checkpoints to ask each witness for.
    """
    heads, proofs = witnessed(project, newest)
    if outside:
        proofs = [proof_by("checkpoints", outside), *proofs]
    events, faults = verify(project, [*heads, *outside])
    last = Checkpoint.objects.filter(project=row_of(project)).order_by("-sequence").first()
    return Verdict(chain_name(project), events, faults, last.sequence if last else 0, proofs)


def witnessed(project: Tenant | None, newest: int) -> tuple[list[SignedHead], list[Proof]]:
    """Return the checkpoints of the chain that the witnesses keep, and a proof for each witness.

    The proof of one that does not answer, or cannot be read, names the trouble.
    """
    heads: list[SignedHead] = []
    proofs = []
    for witness in configured():
        try:
            own_heads = witness.heads(project, newest)
        except (Away, Unreadable) as error:
            proofs.append(Proof(witness.name, trouble=str(error)))
        else:
            heads += own_heads
            proofs.append(proof_by(witness.name, own_heads))
    return heads, proofs


def proof_by(name: str, heads: list[SignedHead]) -> Proof:
    """Return the proof of a witness that keeps these checkpoints: that of the newest, or an empty one without any."""
    last = max(heads, key=lambda head: head.sequence, default=None)
    return Proof(name, last.sequence, datetime.fromisoformat(last.at)) if last else Proof(name)
