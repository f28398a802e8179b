"""The step of a declaration that makes the cluster and its replicas as the file says."""

from __future__ import annotations

from typing import Any

from adapterhub.cli.plan_state import Change, State, known
from adapterhub.client import fleet
from adapterhub.client.rest_types import Replica

LIMITS = ("engine", "max_lora_rank", "max_loras", "routing", "discovery")


class TheCluster:
    """The step that makes the cluster and its replicas as the file says."""

    def plan(self, state: State) -> Change | None:
        """Return the creation or change of the cluster; None if the file names none, or nothing differs.

        Stores the cluster and its replicas, as the server has them, in the state.
        """
        wanted = state.declared.cluster
        if wanted is None:
            return None
        state.cluster = state.find(fleet.cluster(state.named(wanted.slug)))
        if state.cluster is None:
            return Change("create", "cluster", wanted.slug, f"a cluster of {state.declared.base}")
        state.replicas = list(state.api.rows(fleet.replicas(project=state.project, cluster=wanted.slug)))
        differences = [*self.limits(state), *(f"+ {url}" for url in self.missing(state))]
        differences += [f"- {row['url']}" for row in self.surplus(state)]
        return Change("change", "cluster", wanted.slug, ", ".join(differences)) if differences else None

    def limits(self, state: State) -> dict[str, Any]:
        """Return the limits that differ from the file's, by their names."""
        wanted, stored = known(state.declared.cluster).model_dump(), {**known(state.cluster)}
        return {name: wanted[name] for name in LIMITS if wanted[name] != stored[name]}

    def missing(self, state: State) -> list[str]:
        """Return the addresses in the file that are no replica yet."""
        present = {row["url"] for row in state.replicas}
        return [url for url in known(state.declared.cluster).replicas or [] if url not in present]

    def surplus(self, state: State) -> list[Replica]:
        """Return the replicas that the file does not name; none if it names no replicas at all."""
        named = known(state.declared.cluster).replicas
        if named is None:
            return []
        wanted = set(named)
        return [row for row in state.replicas if row["url"] not in wanted and not row["is_discovered"]]

    def do(self, state: State) -> None:
        """Create or change the cluster, add the missing replicas, and delete the surplus ones.

        Raises ApiError for what the server refuses, such as to cut off live versions.
        """
        wanted = known(state.declared.cluster)
        name = state.named(wanted.slug)
        if state.cluster is None:
            fields = wanted.model_dump(include=set(LIMITS))
            creation = fleet.create_cluster(state.project, wanted.slug, state.declared.base, **fields)
            state.cluster = state.api.send(creation)
        elif changed := self.limits(state):
            state.cluster = state.api.send(fleet.change_cluster(name, wanted.reason, **changed))
        for url in self.missing(state):
            state.api.send(fleet.add_replica(name, url))
        for row in self.surplus(state):
            state.api.send(fleet.delete_replica(row["id"], wanted.reason))
