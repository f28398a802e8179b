"""Pages of adapters and versions: each view checks permissions, calls one method of a model, and renders the result."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.db.models import Avg, Count, Max, Prefetch, Q, QuerySet
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.utils.timezone import now
from django.views.decorators.http import require_POST

from adapterhub.api.listing import PAGE_ROWS, Listing
from adapterhub.api.pages import allowed, followed, visible_or_404, visible_rows
from adapterhub.api.permissions import actor_of, require_scope, scopes_in
from adapterhub.audit.models import AuditEvent, AuditEventQuerySet
from adapterhub.audit.tags import Tag
from adapterhub.charts import heat_map
from adapterhub.core.tenancy import Scope
from registry.models import Adapter, AdapterVersion, Alias, Response, Rollout, without_bodies
from registry.models.adapter import VersionStatus
from registry.pages.lineage_graph import ancestry
from registry.pages.plan_form import PromoteForm, preview

EVENTS, COMPARED, DRAWN = 20, 12, 8
ADAPTER_SORTS = {"name": "slug", "versions": "count", "newest": "newest"}
# Their links name the project.
ALIASES = Prefetch("aliases", Alias.objects.select_related("project"))
VERSION_SORTS = {"number": "number", "parameters": "parameters", "rank": "max_rank", "loss": "metrics__loss_after"}


@login_required
def adapters(request: HttpRequest) -> HttpResponse:
    """List the adapters that the person may see; the query string searches, sorts and pages."""
    visible = visible_rows(request, Adapter.objects.select_related("project", "base_model"))
    counted = visible.annotate(count=Count("versions"), newest=Max("versions__created_at")).order_by("slug")
    listing = Listing(request, counted, search=("slug", "description", "tags__icontains"), sorts=ADAPTER_SORTS)
    may_publish = allowed(request, Scope.PUBLISH).filter(archived_at=None).exists()
    return render(request, "registry/adapters.html", {**listing.context(), "may_publish": may_publish})


@login_required
def adapter(request: HttpRequest, slug: str) -> HttpResponse:
    """Show an adapter: its versions, lineage, traffic of the last day and latest events.

    The query string searches, sorts and pages the versions. Raises Http404 if the person does not see the adapter.
    """
    viewed = visible_or_404(request, Adapter.objects.select_related("project", "base_model"), slug=slug)
    versions = without_bodies(viewed.versions.prefetch_related(ALIASES), "")
    choices = {"status": VersionStatus.choices}
    listing = Listing(
        request, versions, search=("digest", "method", "served_name"), sorts=VERSION_SORTS, choices=choices
    )
    newest = (
        viewed.versions.select_related("adapter__project").defer("config", "ranks").prefetch_related(ALIASES)[:DRAWN]
    )
    context = {
        "adapter": viewed,
        "events": history(viewed).defer("canonical").fitting(EVENTS),
        "ancestry": ancestry(newest),
        "traffic": traffic(viewed),
        "may_publish": Scope.PUBLISH in scopes_in(request, viewed.project),
        **listing.context(),
    }
    return render(request, "registry/adapter.html", context)


def history(adapter: Adapter) -> AuditEventQuerySet:
    """Return the audit events of the adapter and its newest versions, newest first, without events of reading."""
    names = {model: model._meta.model_name for model in (Adapter, AdapterVersion)}
    keys = [str(key) for key in adapter.versions.values_list("pk", flat=True)[:PAGE_ROWS]]
    about = Q(object_type=names[Adapter], object_id=str(adapter.pk))
    about |= Q(object_type=names[AdapterVersion], object_id__in=keys)
    return AuditEvent.objects.filter(about).without_reads().order_by("-id")


def traffic(adapter: Adapter) -> QuerySet[Any]:
    """Return {version__number, answers, mean_ms} of each version that answered in the last 24 hours, the busiest first.

    `answers` is the number of its answers, `mean_ms` their mean duration.
    """
    since = now() - timedelta(days=1)
    counted = Response.objects.filter(version__adapter=adapter, at__gte=since).values("version__number")
    return counted.annotate(answers=Count("pk"), mean_ms=Avg("total_ms")).order_by("-answers")


def find_version(request: HttpRequest, slug: str, number: int) -> AdapterVersion:
    """Return the version in the URL: `slug` is its adapter's, with or without the project's name before it.

    Raises Http404 if the person does not see it, and Conflict if several projects have such a version.
    """
    queryset = AdapterVersion.objects.select_related("adapter__project", "adapter__base_model", "created_by")
    return visible_or_404(request, queryset, "adapter__project", adapter__slug=slug, number=number)


@login_required
def version(request: HttpRequest, slug: str, number: int) -> HttpResponse:
    """Show a version: ranks, evaluations, engines that can serve it, and the actions that the person may take.

    A poll by htmx gets only the changing part. Raises Http404 if the person does not see it.
    """
    viewed = find_version(request, slug, number)
    if request.headers.get("HX-Request"):
        return followed(request, "", "registry/_version_state.html", {"version": viewed}, viewed.status)
    return render_version(request, viewed, PromoteForm(version=viewed))


def render_version(
    request: HttpRequest, viewed: AdapterVersion, form: PromoteForm, previewed: dict[str, Any] | None = None
) -> HttpResponse:
    """Render the version's page with the form of a rollout, its errors, and the preview of its plan.

    `previewed` is that of `preview`; None shows none. The status is 422 if the form has errors.
    """
    scopes, serving = scopes_in(request, viewed.project), list(serving_aliases(viewed))
    events = AuditEvent.objects.about(viewed).without_reads().defer("canonical").fitting()
    context = {
        "version": viewed,
        "aliases": [alias for alias in serving if alias.version_id == viewed.pk],
        "form": form if Scope.OPERATE in scopes else None,
        "previewed": previewed,
        "may_archive": Scope.PUBLISH in scopes and viewed.status != VersionStatus.ARCHIVED and not serving,
        "may_compress": Scope.TRAIN in scopes and viewed.status == VersionStatus.READY,
        "reduces": reduction_reason(viewed) if Scope.TRAIN in scopes else "",
        "less": max(1, viewed.max_rank // 2),
        "events": events,
        "heat": heat_map(viewed.ranks),
        "evaluations": viewed.evaluations.select_related("against__adapter__project")[:5],
        "verdicts": viewed.verdicts(),
        "comparisons": comparisons(events),
        **intake_report(viewed),
        "others": without_bodies(viewed.adapter.versions.exclude(pk=viewed.pk), "")[:COMPARED],
    }
    return render(request, "registry/version.html", context, status=422 if form.errors else 200)


def reduction_reason(version: AdapterVersion) -> str:
    """Return the reason why the version should be reduced to a plain LoRA or a lower rank; "" if it need not be."""
    if version.status == VersionStatus.UNSERVABLE:
        return "Engines cannot serve it as it is, and PEFT computes it."
    limit = version.adapter.base_model.highest_rank(version.project)
    if version.status == VersionStatus.READY and 0 < limit < version.max_rank:
        return f"Its highest rank is {version.max_rank}; the clusters of its base model serve at most {limit}."
    return ""


def comparisons(events: list[AuditEvent]) -> list[dict[str, Any]]:
    """Return the newest comparison with PEFT on each engine release, from a version's events, newest first."""
    newest: dict[str, dict[str, Any]] = {}
    for event in events:
        if event.tag == Tag.VERSION_COMPARED:
            facts = {**(event.after or {}), **(event.evidence or {}), "reason": event.reason, "at": event.at}
            newest.setdefault(facts["engine_version"], facts)
    return list(newest.values())


def serving_aliases(version: AdapterVersion) -> QuerySet[Alias]:
    """Return the aliases that serve the version, or have it as the candidate of an active rollout.

    Their projects are read with them.
    """
    trying = version.candidate_of.active().values("alias")
    return Alias.objects.select_related("project").filter(Q(version=version) | Q(pk__in=trying))


def intake_report(version: AdapterVersion) -> dict[str, Any]:
    """Return the parts of an upload's report: notices, conversions, and the modules' updates by norm, largest first."""
    report = version.report
    updates = report.get("updates", {})
    return {
        "notices": [*report.get("findings", ()), *report.get("measured", ())],
        "conversions": [*version.lineage.get("conversions", ()), *report.get("conversions", ())],
        "updates": sorted(updates.items(), key=lambda item: -item[1]["norm"]),
    }


@login_required
@require_POST
def promote(request: HttpRequest, slug: str, number: int) -> HttpResponse:
    """Open a rollout of this version on an alias and redirect to it.

    Without opening one, show the preview of its plan, more rows of the form, or the form's errors. Raises Http404 if
    the person does not see the version, NotAllowed without scope operate, and as `Rollout.create` does.
    """
    candidate = find_version(request, slug, number)
    require_scope(request, candidate.project, Scope.OPERATE)
    form = PromoteForm(request.POST, version=candidate)
    if not form.is_valid() or {"preview", "more"} & request.POST.keys():
        fields = form.cleaned_data if form.is_valid() else {}
        previewed = preview(fields["steps"], fields["guardrails"]) if "preview" in request.POST and fields else None
        return render_version(request, candidate, form, previewed)
    fields = form.cleaned_data
    rollout = Rollout.create(
        alias=fields["alias"],
        candidate=candidate,
        steps=fields["steps"],
        guardrails=fields["guardrails"],
        checks=fields["checks"],
        reason=fields["reason"],
        by=actor_of(request),
        draft=fields["draft"],
    )
    started = "The rollout starts when every healthy replica has loaded the version"
    started += " and its plan is signed." if rollout.waits_for_signature else "."
    messages.success(request, "The draft is saved: start it below." if rollout.is_draft else started)
    return redirect("rollout", pk=rollout.pk)
