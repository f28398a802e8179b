"""Adapter slots of a cluster's replicas: what must be held at once has to fit, or nothing is begun."""

from __future__ import annotations

from django.db.models import QuerySet

from adapterhub.core.errors import Invalid
from registry.models.adapter import AdapterVersion
from registry.models.alias import Alias


def require_slots(alias: Alias, candidate: AdapterVersion, active: QuerySet) -> None:
    """Both sides of every running rollout stay loaded on each replica; aliases beside them share what is left.

    Raises Invalid with the numbers when this rollout would not fit beside those of `active` on the alias' cluster.
    """
    cluster = alias.cluster
    here = active.filter(alias__cluster=cluster).values_list("candidate", "alias__version")
    held = {version for pair in here for version in pair}
    needed = held | {candidate.pk, alias.version_id}
    if len(needed) > cluster.max_loras:
        raise Invalid(
            f"{cluster} has {cluster.max_loras} adapter slots a replica; its running rollouts hold {len(held)} "
            f"versions, and with this one it would be {len(needed)}: end one, or raise max_loras here and on the "
            f"engines.",
            field="candidate",
            code="too_few_slots",
        )
