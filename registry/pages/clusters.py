"""Pages of clusters: the desired and loaded versions of every replica, and its free slots."""

from __future__ import annotations

from typing import Any

from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render

from adapterhub.api.listing import Listing
from adapterhub.api.pages import visible_or_404, visible_rows
from registry.models import AdapterVersion, Cluster, without_bodies
from registry.serving.cluster_state import cluster_state

PAGE = 50


@login_required
def clusters(request: HttpRequest) -> HttpResponse:
    """List the clusters with a summary of their replicas."""
    visible = visible_rows(
        request, Cluster.objects.select_related("base_model").prefetch_related("replicas").order_by("slug")
    )
    listing = Listing(
        request,
        visible,
        search=("slug", "base_model__slug"),
        choices={"engine": Cluster.Engine.choices},
        sorts={"name": "slug", "base": "base_model__slug", "rank": "max_lora_rank"},
    )
    context = listing.context(PAGE)
    return render(request, "registry/clusters.html", {**context, "rows": [in_short(each) for each in context["page"]]})


def in_short(cluster: Cluster) -> dict[str, Any]:
    """Summarise a cluster: number of replicas, of healthy ones, and of slots taken on the fullest replica."""
    replicas = list(cluster.replicas.all())
    return {
        "cluster": cluster,
        "replicas": len(replicas),
        "healthy": sum(replica.is_healthy for replica in replicas),
        "taken": max((len(replica.loaded) for replica in replicas), default=0),
    }


@login_required
def cluster(request: HttpRequest, slug: str) -> HttpResponse:
    """Show a cluster: desired and observed versions of each replica, and its free slots."""
    viewed = visible_or_404(request, Cluster.objects.select_related("project", "base_model"), slug=slug)
    state = cluster_state(viewed)
    loaded_names = {name for row in state for name in row["observed"]}
    loaded = without_bodies(AdapterVersion.objects.filter(served_name__in=loaded_names).select_related("adapter"), "")
    versions = {version.served_name: version for version in loaded}
    for row in state:
        row["versions"] = [versions[name] for name in row["observed"] if name in versions]
        row["held_bytes"] = sum(version.size_bytes for version in row["versions"])
        row["free"] = max(0, viewed.max_loras - len(row["observed"]))
    return render(request, "registry/cluster.html", {"cluster": viewed, "state": state})
