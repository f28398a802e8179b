"""Lineage graph of a version: from its dataset and training to its approvals, rollouts and answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from adapterhub.core.counts import counted
from registry.models import AdapterVersion, AliasMove, Approval, Rollout

Node = dict[str, Any]


@dataclass(frozen=True)
class Past:
    """A version's approvals, rollouts, moves of aliases to it, and number of answers, read once from the database."""

    approvals: list[Approval]
    rollouts: list[Rollout]
    moves: list[AliasMove]
    answers: int

    @classmethod
    def of(cls, version: AdapterVersion) -> Past:
        """Read the version's past from the database."""
        rollouts = Rollout.objects.filter(candidate=version).select_related("alias").prefetch_related("decisions")
        moves = AliasMove.objects.filter(version=version).select_related("alias")
        return cls(approvals_of(version), list(rollouts), list(moves), version.responses.count())


def lineage(version: AdapterVersion, past: Past | None = None) -> dict[str, Any]:
    """Return the version's graph as {nodes, edges}, from its origins to what followed from it.

    `nodes` are {id, kind, name, at}. `edges` are pairs [earlier, later] of ids: from each origin to the version, and
    from the version to each later node. `past` is read from the database unless it is given.
    """
    before, after = origins(version), consequences(version, past or Past.of(version))
    own = node("version", version.pk, version.served_name, version.created_at)
    edges = [[item["id"], own["id"]] for item in before]
    edges += [[own["id"], item["id"]] for item in after]
    return {"nodes": [*before, own, *after], "edges": edges}


def node(kind: str, key: Any, name: str, at: Any = None) -> Node:
    """Return a node of the graph as a dict for JSON; its id is `kind:key`, its time in ISO 8601 or None."""
    return {"id": f"{kind}:{key}", "kind": kind, "name": name, "at": at.isoformat() if at else None}


def origins(version: AdapterVersion) -> list[Node]:
    """Return nodes of the recorded origins: base model, datasets, rank analysis, run, compression, source version.

    The source version is the one from which a compression made this one.
    """
    base, lineage = version.adapter.base_model, version.lineage
    nodes = [node("base_model", version.base_digest, f"{base.slug} {version.base_digest[:12]}")]
    for kind, field in (
        ("dataset", "dataset"),
        ("rank_analysis", "rank_analysis"),
        ("training_run", "run"),
        ("compression", "compression"),
    ):
        if lineage.get(field):
            nodes.append(node(kind, lineage[field], str(lineage[field])[:12]))
    nodes += [node("dataset", mixed["dataset"], mixed["dataset"][:12]) for mixed in lineage.get("mixture", [])]
    if source := lineage.get("compressed_from"):
        nodes.append(node("version", source["digest"], source["served_name"]))
    return nodes


def consequences(version: AdapterVersion, past: Past) -> list[Node]:
    """Return nodes of what followed: approvals, rollouts with it as the candidate, and moves of aliases to it.

    One more node has the number of its answers, unless that is 0.
    """
    approvals = [
        node("approval", item.pk, f"{item.get_status_display()} for {item.alias}", item.created_at)
        for item in past.approvals
    ]
    rollouts = [
        node("rollout", item.pk, f"{item.get_status_display()} on {item.alias}", item.created_at)
        for item in past.rollouts
    ]
    moves = [node("alias_move", item.pk, item.alias.name, item.at) for item in past.moves]
    answers = [node("answers", version.pk, f"{counted(past.answers, 'answer')}")] if past.answers else []
    return [*approvals, *rollouts, *moves, *answers]


def approvals_of(version: AdapterVersion, alias_name: str = "") -> list[Approval]:
    """Return the approvals that were requested for a version; with `alias_name`, only those on that alias."""
    approvals = Approval.objects.filter(candidate=version).select_related("alias").prefetch_related("signatures")
    return list(approvals.filter(alias__name=alias_name) if alias_name else approvals)
