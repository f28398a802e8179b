"""Pages of clusters: the desired and loaded versions of every replica, and its free slots."""

from __future__ import annotations

from typing import Any

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.forms import Form
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_POST

from adapterhub.api.listing import Listing
from adapterhub.api.pages import allowed, reason_in, visible_or_404, visible_rows
from adapterhub.api.permissions import actor_of, require_scope, scopes_in
from adapterhub.core.tenancy import Scope
from registry.models import AdapterVersion, Cluster, Replica, without_bodies
from registry.pages.forms import AddressForm, ClusterForm, CuttingOffForm, GrantForm, ReasonForm, ShareForm, cleaned
from registry.serving.batch_speed import batch_speed
from registry.serving.cluster_state import cluster_state

# What an operator changes about a cluster.
STARTED_WITH = ("max_lora_rank", "max_loras", "routing", "discovery")
CLUSTER_VERBS: dict[str, type[Form]] = {
    "change": ClusterForm,
    "change_grant": ShareForm,
    "drain": CuttingOffForm,
    "remove": ReasonForm,
}
REPLICA_VERBS: dict[str, type[ReasonForm]] = {
    "change_address": AddressForm,
    "drain": CuttingOffForm,
    "resume": ReasonForm,
    "remove": CuttingOffForm,
}


@login_required
def clusters(request: HttpRequest) -> HttpResponse:
    """List the clusters with a summary of their replicas; the query string searches, sorts and pages."""
    visible = visible_rows(
        request, Cluster.objects.select_related("project", "base_model").prefetch_related("replicas").order_by("slug")
    )
    listing = Listing(
        request,
        visible,
        search=("slug", "base_model__slug"),
        choices={"engine": Cluster.Engine.choices},
        sorts={"name": "slug", "base": "base_model__slug", "rank": "max_lora_rank"},
    )
    may_operate = allowed(request, Scope.OPERATE).filter(archived_at=None).exists()
    context = {**listing.context(), "may_operate": may_operate}
    context["page"].object_list = [in_short(cluster) for cluster in context["page"]]
    return render(request, "registry/clusters.html", context)


def in_short(cluster: Cluster) -> dict[str, Any]:
    """Return a summary of a cluster: the cluster, the numbers of its replicas, and the most slots taken on one.

    `replicas` counts all, `healthy` those that answer.
    """
    replicas = list(cluster.replicas.all())
    return {
        "cluster": cluster,
        "replicas": len(replicas),
        "healthy": sum(replica.is_healthy for replica in replicas),
        "taken": max((len(replica.loaded) for replica in replicas), default=0),
    }


@login_required
def cluster(request: HttpRequest, slug: str) -> HttpResponse:
    """Show a cluster: desired and observed versions of each replica, its free slots, and its grants that still stand.

    Of the observed versions only those that the person may see are named. Raises Http404 if the person does not see the
    cluster.
    """
    rows = Cluster.objects.select_related("project", "base_model").prefetch_related("replicas", "grants")
    viewed = visible_or_404(request, rows, slug=slug)
    state = cluster_state(viewed)
    loaded_names = {name for row in state for name in row["observed"]}
    known = AdapterVersion.objects.filter(served_name__in=loaded_names).select_related("adapter__project")
    loaded = without_bodies(visible_rows(request, known, "adapter__project"), "")
    versions = {version.served_name: version for version in loaded}
    releases = {replica.pk: replica.engine_version for replica in viewed.replicas.all()}
    for row in state:
        row["versions"] = [versions[name] for name in row["observed"] if name in versions]
        row["held_bytes"] = sum(version.size_bytes for version in row["versions"])
        row["free"] = max(0, viewed.max_loras - len(row["observed"]))
        row["batch_speed"] = batch_speed(releases[row["id"]]) if viewed.engine == Cluster.Engine.VLLM else ""
    context = {
        "cluster": viewed,
        "state": state,
        "grants": [grant for grant in viewed.grants.all() if grant.withdrawn_at is None],
        "may_operate": Scope.OPERATE in scopes_in(request, viewed.project),
        "form": ClusterForm(initial={name: getattr(viewed, name) for name in STARTED_WITH}),
    }
    return render(request, "registry/cluster.html", context)


@login_required
@require_POST
def grant_cluster(request: HttpRequest, slug: str) -> HttpResponse:
    """Grant the cluster to the project in the form, with the form's shares, and redirect to the cluster.

    Raises Http404 if the person does not see it, NotAllowed without scope operate, and as `Cluster.grant` does.
    """
    viewed, form = operated(request, slug), cleaned(GrantForm(request.POST))
    viewed.grant(form.pop("project"), by=actor_of(request), **form)
    messages.success(request, f"Granted: an alias of the project on {viewed.ref} accepts it.")
    return redirect("cluster", slug=viewed.ref)


@login_required
@require_POST
def withdraw_grant(request: HttpRequest, slug: str) -> HttpResponse:
    """Withdraw the grant of the cluster to the project in the form, and redirect to the cluster.

    Raises Http404 if the person does not see it, NotAllowed without scope operate, and as `Cluster.withdraw` does.
    """
    viewed, form = operated(request, slug), cleaned(GrantForm(request.POST))
    viewed.withdraw(form["project"], reason=reason_in(request), by=actor_of(request))
    messages.success(request, f"Withdrawn: {viewed.ref} no longer serves {form['project']}.")
    return redirect("cluster", slug=viewed.ref)


@login_required
@require_POST
def steer_cluster(request: HttpRequest, slug: str, verb: str) -> HttpResponse:
    """Call the cluster's method `verb`, a key of CLUSTER_VERBS, with the form's fields; return to the cluster's page.

    After `remove` that is the list of clusters. Raises Http404 for another verb or if the person does not see the
    cluster, NotAllowed without scope operate, and as the method does.
    """
    if verb not in CLUSTER_VERBS:
        raise Http404
    steered = operated(request, slug)
    getattr(steered, verb)(by=actor_of(request), **cleaned(CLUSTER_VERBS[verb](request.POST)))
    messages.success(request, f"Done: {steered.slug}, {verb}.")
    return redirect("clusters") if verb == "remove" else redirect("cluster", slug=steered.ref)


@login_required
@require_POST
def steer_replica(request: HttpRequest, pk: int, verb: str) -> HttpResponse:
    """Call the replica's method `verb`, a key of REPLICA_VERBS, with the form's fields; return to the cluster's page.

    Raises Http404 for another verb or if the person does not see the replica, NotAllowed without scope operate, and as
    the method does.
    """
    if verb not in REPLICA_VERBS:
        raise Http404
    steered = visible_or_404(request, Replica.objects.select_related("cluster__project"), "cluster__project", pk=pk)
    require_scope(request, steered.cluster.project, Scope.OPERATE)
    getattr(steered, verb)(by=actor_of(request), **cleaned(REPLICA_VERBS[verb](request.POST)))
    messages.success(request, f"Done: {steered.url}, {verb.replace('_', ' ')}.")
    return redirect("cluster", slug=steered.cluster.ref)


def operated(request: HttpRequest, slug: str) -> Cluster:
    """Return the cluster that `slug` in the URL means, with or without its project's name before it.

    Raises Http404 if the person sees none, Conflict if several projects have it, and NotAllowed without scope operate.
    """
    viewed: Cluster = visible_or_404(request, Cluster.objects.select_related("project"), slug=slug)
    require_scope(request, viewed.project, Scope.OPERATE)
    return viewed
