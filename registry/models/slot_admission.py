"""Admission check for adapter slots: a rollout may start only if all versions it needs fit on each replica."""

from __future__ import annotations

from typing import Any

from django.db.models import QuerySet

from adapterhub.core.counts import counted
from adapterhub.core.errors import Invalid
from registry.models.adapter import AdapterVersion
from registry.models.alias import Alias


def require_slots(alias: Alias, candidate: AdapterVersion, active: QuerySet[Any]) -> None:
    """Check that the alias' cluster has adapter slots for a rollout of `candidate`.

    `active` are the active rollouts. Both versions of each stay loaded on every replica; the other aliases share the
    slots that remain. Raises Invalid with the numbers if this rollout does not fit beside them.
    """
    cluster = alias.cluster
    pairs = active.filter(alias__cluster=cluster).values_list("candidate", "alias__version")
    loaded = {version for pair in pairs for version in pair}
    needed = loaded | {candidate.pk, alias.version_id}
    if len(needed) > cluster.max_loras:
        raise Invalid(
            f"{cluster} has {counted(cluster.max_loras, 'adapter slot')} a replica; its running rollouts hold "
            f"{counted(len(loaded), 'version')}, and with this one it would be {len(needed)}: end one, or raise "
            "max_loras here and on the engines.",
            field="candidate",
            code="too_few_slots",
        )
