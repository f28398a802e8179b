"""Pages that create adapters, clusters, replicas and aliases, and that change a description, a policy or a state."""

from __future__ import annotations

from typing import Any

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.views.decorators.http import require_POST

from adapterhub.api.pages import allowed_somewhere, errors_on, form_page, reason_in, visible_or_404
from adapterhub.api.permissions import actor_of, require_scope
from adapterhub.core.errors import NotAllowed
from adapterhub.core.tenancy import Scope
from registry.models import Adapter, Alias, ApprovalKind, ApprovalStatus, Cluster
from registry.pages.adapters import find_version
from registry.pages.aliases import find_alias
from registry.pages.clusters import operated
from registry.pages.forms import cleaned
from registry.pages.new_forms import (
    AdapterForm,
    AliasForm,
    ClusterForm,
    DescriptionForm,
    PolicyForm,
    ReplicaForm,
    policy_fields,
)


@login_required
def new_adapter(request: HttpRequest) -> HttpResponse:
    """Show the form for a new adapter, or create it; the query string may name the base model.

    Raises NotAllowed for people with scope publish in no project, and NoProject as `allowed_somewhere` does.
    """
    projects = allowed_somewhere(request, Scope.PUBLISH)
    form = AdapterForm(request.POST or None, projects=projects, initial=proposed(request, "base_model"))
    if form.is_valid():
        with errors_on(form):
            adapter = Adapter.create(by=actor_of(request), **form.cleaned_data)
            messages.success(request, f"{adapter} is there; it has no version yet.")
            return redirect("adapter", slug=adapter.ref)
    return form_page(
        request,
        form,
        title="New adapter",
        lead="A named line of work on one base model: each training of it publishes a version.",
        action="Create the adapter",
        back=reverse("adapters"),
        place="Adapters",
    )


def proposed(request: HttpRequest, name: str) -> dict[str, str]:
    """Return the initial value of the form's field `name` from the query string; an empty dict without one."""
    return {name: request.GET[name]} if name in request.GET else {}


@login_required
def edit_adapter(request: HttpRequest, slug: str) -> HttpResponse:
    """Show the form for an adapter's description and tags; a POST changes them and redirects to the adapter.

    Raises Http404 if the person does not see the adapter, and NotAllowed without scope publish.
    """
    adapter = visible_or_404(request, Adapter.objects.select_related("project"), slug=slug)
    require_scope(request, adapter.project, Scope.PUBLISH)
    initial = {"description": adapter.description, "tags": adapter.tags}
    form = DescriptionForm(request.POST or None, initial=initial)
    if form.is_valid():
        with errors_on(form):
            adapter.describe(by=actor_of(request), **form.cleaned_data)
            messages.success(request, f"{adapter} is described anew.")
            return redirect("adapter", slug=adapter.ref)
    return form_page(
        request,
        form,
        title=f"Describe {adapter}",
        lead="Its name, project and base model never change.",
        action="Save",
        back=reverse("adapter", args=[adapter.ref]),
        place=str(adapter),
    )


@login_required
@require_POST
def archive_version(request: HttpRequest, slug: str, number: int) -> HttpResponse:
    """Archive a version, so that it can no longer be served, and redirect to it.

    Raises Http404 if the person does not see it, NotAllowed without scope publish, and as `AdapterVersion.archive`
    does.
    """
    version = find_version(request, slug, number)
    require_scope(request, version.project, Scope.PUBLISH)
    version.archive(by=actor_of(request), reason=reason_in(request))
    messages.success(request, f"{version} is archived: it can no longer be served.")
    return redirect("version", slug=slug, number=number)


@login_required
def new_cluster(request: HttpRequest) -> HttpResponse:
    """Show the form for a new cluster, or create the cluster with its first replicas, all or none of them.

    The query string may name the base model. Raises NotAllowed for people with scope operate in no project, and
    NoProject as `allowed_somewhere` does.
    """
    projects = allowed_somewhere(request, Scope.OPERATE)
    form = ClusterForm(request.POST or None, projects=projects, initial=proposed(request, "base_model"))
    if form.is_valid():
        with errors_on(form), transaction.atomic():
            fields = dict(form.cleaned_data)
            replicas, by = fields.pop("replicas"), actor_of(request)
            cluster = Cluster.create(by=by, **fields)
            for url in replicas:
                cluster.add_replica(url=url, by=by)
            messages.success(request, f"{cluster} is there with {counted(len(replicas), 'replica')}.")
            return redirect("cluster", slug=cluster.ref)
    return form_page(
        request,
        form,
        title="New cluster",
        lead="Replicas of one engine with one base model. AdapterHub loads the versions that its aliases serve.",
        action="Create the cluster",
        back=reverse("clusters"),
        place="Clusters",
    )


def counted(number: int, noun: str) -> str:
    """Return the number with the noun, in the plural unless it is 1: "no replicas", "1 replica"."""
    return f"{number or 'no'} {noun}{'' if number == 1 else 's'}"


@login_required
@require_POST
def add_replica(request: HttpRequest, slug: str) -> HttpResponse:
    """Add the replica of the form to a cluster, and redirect to the cluster.

    Raises Http404 if the person does not see the cluster, NotAllowed without scope operate, and as
    `Cluster.add_replica` does.
    """
    cluster = operated(request, slug)
    replica = cluster.add_replica(by=actor_of(request), **cleaned(ReplicaForm(request.POST)))
    messages.success(request, f"{replica} is added: it is asked what it holds within seconds.")
    return redirect("cluster", slug=cluster.ref)


@login_required
def new_alias(request: HttpRequest) -> HttpResponse:
    """Show the form for a new alias, or create it; the query string may name the version that it serves at once.

    Raises NotAllowed for people with scope operate in no project, and NoProject as `allowed_somewhere` does.
    """
    projects = allowed_somewhere(request, Scope.OPERATE)
    form = AliasForm(request.POST or None, projects=projects, initial=proposed(request, "version"))
    if form.is_valid():
        with errors_on(form):
            fields = form.cleaned_data
            project = fields["version"].adapter.project
            require_scope(request, project, Scope.OPERATE)
            alias = Alias.create(
                project=project,
                policy=form.policy(),
                by=actor_of(request),
                **{name: fields[name] for name in ("name", "cluster", "version", "default")},
            )
            messages.success(request, f"Applications that send {alias} as model get {alias.version}.")
            return redirect("alias", name=alias.ref)
    return form_page(
        request,
        form,
        title="New alias",
        lead="The public name that applications send as model. A rollout moves it to another version.",
        action="Serve it",
        back=f"{reverse('overview')}#aliases",
        place="Overview",
    )


@login_required
def alias_policy(request: HttpRequest, name: str) -> HttpResponse:
    """Show the form for an alias' policy, or change the policy.

    For a protected alias a POST requests approval first; once that is given, the form holds the approved policy and the
    next POST makes the change. Raises Http404 if the person does not see the alias, and NotAllowed without scope
    operate.
    """
    alias = find_alias(request, name)
    require_scope(request, alias.project, Scope.OPERATE)
    approved = alias.approvals.filter(kind=ApprovalKind.ALIAS_POLICY, status=ApprovalStatus.APPROVED).first()
    wanted = approved.policy if approved else alias.policy
    form = PolicyForm(request.POST or None, initial=policy_fields(wanted or {}))
    if form.is_valid():
        with errors_on(form):
            return redirect(changed(request, alias, form))
    context: dict[str, Any] = {"alias": alias, "form": form, "approved": approved}
    return render(request, "registry/alias_policy.html", context, status=422 if form.errors else 200)


def changed(request: HttpRequest, alias: Alias, form: PolicyForm) -> str:
    """Change the alias' policy as the form says; return the URL of the page to go to.

    If the alias is protected and nobody has approved the change, approval is requested instead, and the URL is that of
    the request. Raises Invalid and Conflict as `Alias.set_policy` and `Alias.request_policy` do.
    """
    by, reason, wanted = actor_of(request), form.cleaned_data["reason"], form.policy(alias.policy)
    try:
        alias.set_policy(wanted, by=by, reason=reason)
    except NotAllowed as error:
        if error.code != "approval_missing":
            raise
        requested = alias.request_policy(wanted, by=by, reason=reason)
        messages.success(request, f"{alias} is protected: another person must approve this change first.")
        return reverse("approval", args=[requested.pk])
    messages.success(request, f"The policy of {alias} is changed.")
    return reverse("alias", args=[alias.ref])
