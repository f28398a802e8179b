"""Calls about clusters and replicas, how they come and go, and what projects and tokens may take of them."""

from __future__ import annotations

from typing import Any

from adapterhub.client.calls import Call, get, part, post
from adapterhub.client.rest_types import Cluster, Json, Page, Replica, ReplicaState


def clusters(**filters: str) -> Call[Page[Cluster]]:
    """List clusters by their slugs. Filters: project, base_model, engine."""
    return get("clusters/", **filters)


def cluster(slug: str) -> Call[Cluster]:
    """Read a cluster, `gpu` or `project.gpu`."""
    return get(f"clusters/{part(slug)}/")


def cluster_state(slug: str) -> Call[list[ReplicaState]]:
    """Read what each replica of a cluster should hold, and what it was seen to hold."""
    return get(f"clusters/{part(slug)}/state/")


def create_cluster(project: str, slug: str, base_model: str, **fields: Any) -> Call[Cluster]:
    """Create a cluster. Fields: engine, max_lora_rank, max_loras, routing, discovery, engine_key."""
    return post("clusters/", project=project, slug=slug, base_model=base_model, **fields)


def change_cluster(slug: str, reason: str, **fields: Any) -> Call[Cluster]:
    """Change how a cluster's engines were started, where they are found, or how routers choose among them.

    Fields: engine, max_lora_rank, max_loras, routing, discovery, engine_key, confirm.
    Without `confirm` the server refuses a rank below that of a live version.
    """
    return Call("PATCH", f"clusters/{part(slug)}/", {"reason": reason, **fields})


def drain_cluster(slug: str, reason: str, *, confirm: bool = False) -> Call[Cluster]:
    """Drain all replicas of a cluster: they get no more requests and unload what they hold.

    Without `confirm` the server refuses to cut off live versions that nothing else holds.
    """
    return post(f"clusters/{part(slug)}/drain/", reason=reason, confirm=confirm)


def delete_cluster(slug: str, reason: str) -> Call[None]:
    """Delete a cluster that has neither aliases nor replicas."""
    return Call("DELETE", f"clusters/{part(slug)}/", params={"reason": reason})


def replicas(**filters: str) -> Call[Page[Replica]]:
    """List replicas, newest first. Filters: project, cluster, is_healthy."""
    return get("replicas/", **filters)


def add_replica(cluster: str, url: str) -> Call[Replica]:
    """Add a running engine to a cluster."""
    return post("replicas/", cluster=cluster, url=url)


def change_replica(pk: int, url: str, reason: str) -> Call[Replica]:
    """Correct a replica's address."""
    return Call("PATCH", f"replicas/{pk}/", {"url": url, "reason": reason})


def drain_replica(pk: int, reason: str, *, confirm: bool = False) -> Call[Replica]:
    """Send a replica no more requests; it unloads what it holds.

    Without `confirm` the server refuses to cut off live versions that it alone holds.
    """
    return post(f"replicas/{pk}/drain/", reason=reason, confirm=confirm)


def resume_replica(pk: int, reason: str) -> Call[Replica]:
    """Let a drained replica serve again."""
    return post(f"replicas/{pk}/resume/", reason=reason)


def delete_replica(pk: int, reason: str, *, confirm: bool = False) -> Call[None]:
    """Delete a replica; its engine is left alone.

    Without `confirm` the server refuses to cut off live versions that it alone holds.
    """
    return Call("DELETE", f"replicas/{pk}/", params={"reason": reason, "confirm": str(confirm).lower()})


def project(slug: str) -> Call[Json]:
    """Read a project."""
    return get(f"projects/{part(slug)}/")


def limit_project(slug: str, reason: str, **limits: float | None) -> Call[Json]:
    """Change what a project may take of the routers. Limits: requests_per_s, tokens_per_min; None removes one."""
    return Call("PATCH", f"projects/{part(slug)}/", {"reason": reason, **limits})


def declare_variant(slug: str, of: str | None, reason: str) -> Call[Json]:
    """Declare the base model `slug` a variant of the base model `of`; None revokes the relation."""
    return Call("PATCH", f"base-models/{part(slug)}/", {"variant_of": of, "reason": reason})


def limit_token(pk: str, reason: str, **limits: float | None) -> Call[Json]:
    """Change what an API token may take of the routers. Limits: requests_per_s, tokens_per_min; None removes one."""
    return Call("PATCH", f"tokens/{part(pk)}/", {"reason": reason, **limits})
