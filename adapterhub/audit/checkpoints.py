"""Signed checkpoints: the head of each chain, hour by hour, kept where the database's owner has no control."""

from __future__ import annotations

import logging
from typing import Any

from django.conf import settings
from django.db import transaction
from django.utils.timezone import now

from adapterhub.audit import checkpoint_store
from adapterhub.audit.installation_key import signed
from adapterhub.audit.models import Checkpoint, head_of, lock_chain
from adapterhub.audit.verifier import CHECKPOINT_DOMAIN
from adapterhub.audit.verifier import Checkpoint as SignedHead
from adapterhub.core.tenancy import Tenant, project_model, row_of

log = logging.getLogger(__name__)


def write_all() -> list[Checkpoint]:
    """Write and return a checkpoint of every chain, also without new events, which proves that nothing happened."""
    return [write(project) for project in [None, *project_model().objects.all()]]


def write_due() -> list[Checkpoint]:
    """Write and return checkpoints of those chains for which one is due."""
    return [write(project) for project in [None, *project_model().objects.all()] if is_due(project)]


def is_due(project: Tenant | None) -> bool:
    """Return True if the chain needs a checkpoint.

    It does if it has events and no checkpoint, or if the last one is AUDIT_CHECKPOINT_AGE old or
    AUDIT_CHECKPOINT_EVENTS events behind.
    """
    last = Checkpoint.objects.filter(project=row_of(project)).order_by("-pk").only("sequence", "at").first()
    if last is None:
        return head_of(project)[0] > 0
    fresh = head_of(project)[0] - last.sequence
    return fresh >= settings.AUDIT_CHECKPOINT_EVENTS or now() - last.at >= settings.AUDIT_CHECKPOINT_AGE


def write(project: Tenant | None) -> Checkpoint:
    """Sign the chain's head; store the checkpoint in the database and the artifact store, and log it; return it.

    The chain is locked meanwhile. If the artifact store raises an error, as `checkpoint_store.keep` says, the database
    keeps nothing either.
    """
    with transaction.atomic():
        lock_chain(project)
        point = Checkpoint.objects.create(**head_signed(project))
        checkpoint_store.keep(point.path, bytes(point.document))
    log.info("audit checkpoint %s", bytes(point.document).decode())
    return point


def head_signed(project: Tenant | None) -> dict[str, Any]:
    """Return the fields of a new Checkpoint: the chain's head, signed, with the last checkpoint's digest.

    Saves nothing.
    """
    sequence, head = head_of(project)
    at = now()
    last = Checkpoint.objects.filter(project=row_of(project)).last()
    content = {
        "project": project.slug if project else None,
        "sequence": sequence,
        "head": head.hex(),
        "at": at.isoformat(),
        "previous": last.as_signed().digest if last else "",
    }
    document = signed(CHECKPOINT_DOMAIN, content)
    return {"project": project, "sequence": sequence, "at": at, "document": document}


def signed_heads(project: Tenant | None) -> list[SignedHead]:
    """Return the chain's checkpoints from the database as Checkpoints of the verifier, oldest first, unverified."""
    return [point.as_signed() for point in Checkpoint.objects.filter(project=row_of(project))]
