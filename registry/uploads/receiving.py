"""The version that is made of an adapter's files as somebody sent them: served, or kept without being served."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from adapterhub.core.actor import Actor
from adapterhub.core.errors import Invalid
from registry.exports import zip_export as exports
from registry.models import Adapter, AdapterVersion
from registry.uploads.unservable import keep as keep_unservable


def publish(
    adapter: Adapter, folder: Path, *, fold: bool, keep: bool, confirmation: str, lineage: dict[str, Any], by: Actor
) -> AdapterVersion:
    """Publish what somebody sent as the adapter's next version, its differing scales folded if asked.

    With `keep` it is an adapter that engines cannot serve, and is stored without being served. Raises Invalid,
    Conflict, and Unavailable if the child that folds fails.
    """
    if keep and fold:
        raise Invalid("What is kept stays as it was sent, its scales, too: name keep or fold.", field="fold")
    if keep:
        return keep_unservable(adapter, folder, by=by, confirmation=confirmation, lineage=lineage)
    sent = None
    if fold:
        folder, sent = exports.folded(adapter, folder, confirmation)
    return AdapterVersion.publish(
        adapter,
        folder,
        method="upload",
        by=by,
        foreign=True,
        may_move=True,
        sent=sent,
        confirmation=confirmation,
        lineage=lineage,
    )
