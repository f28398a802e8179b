"""Pages that compare two to four versions: facts, answers to the same prompts, and a blind vote on the answers."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse, QueryDict
from django.shortcuts import redirect, render
from django.urls import reverse
from django.views.decorators.http import require_POST

from adapterhub.api.pages import visible_or_404
from adapterhub.api.permissions import actor_of, require_scope, scopes_in
from adapterhub.charts import heat_map
from adapterhub.core.errors import Invalid, Unavailable
from adapterhub.core.forms import Form
from adapterhub.core.tenancy import Scope
from registry.evidence.comparison import other_version, updates
from registry.models import AdapterVersion, BlindTest, BlindVote, without_bodies
from registry.models.blind_test import tally
from registry.pages.adapters import find_version
from registry.pages.forms import PromptListField
from registry.pages.version_table import comparison_of
from registry.playground.blind_tests import ask_blindly, view_of
from registry.playground.client import MOST_MODELS, token_for

TESTS, OFFERED, MOST_PROMPTS = 20, 12, 8


class PromptsForm(Form):
    """Form for prompts, each of one or more lines, and the maximum length of an answer in tokens."""

    prompts = PromptListField(most=MOST_PROMPTS, label="Prompts, kept with their answers for the vote")
    max_tokens = forms.IntegerField(
        min_value=1, max_value=1024, initial=64, label="Longest answer, in tokens", help_text="Longer ones are cut off."
    )


@login_required
def compare_versions(request: HttpRequest, slug: str, number: int) -> HttpResponse:
    """Show versions of an adapter side by side, with their blind tests; with `distances`, heat maps of their distances.

    `to` in the query string names the other versions by number. Raises Http404 if the person does not see the version,
    and Invalid as `chosen` does.
    """
    version = find_version(request, slug, number)
    versions = chosen(version, request.GET)
    if "distances" in request.GET:
        context = {"maps": distance_maps(versions)}
        return render(request, "registry/_distances.html" if is_part(request) else "registry/distances.html", context)
    return render_comparison(request, versions, PromptsForm())


def is_part(request: HttpRequest) -> bool:
    """Return True for a request of htmx, which replaces a part of the page."""
    return bool(request.headers.get("HX-Request"))


def chosen(version: AdapterVersion, query: QueryDict) -> list[AdapterVersion]:
    """Return the version and the others of its adapter that `to` in the query names, each once.

    Raises Invalid for an unknown number, and unless they are 2 to MOST_MODELS versions.
    """
    others = [other_version(version, number) for number in query.getlist("to") or [""]]
    versions = list({each.pk: each for each in (version, *others)}.values())
    if not 2 <= len(versions) <= MOST_MODELS:
        raise Invalid(f"Compare 2 to {MOST_MODELS} versions: name one to {MOST_MODELS - 1} others.", field="to")
    return versions


def render_comparison(
    request: HttpRequest, versions: list[AdapterVersion], form: PromptsForm, problem: str = ""
) -> HttpResponse:
    """Return the page of the comparison, with status 422 if the form has errors; `problem` is a sentence to show.

    The first of `versions` is the one whose page it is; "" as `problem` shows nothing.
    """
    version, numbers = versions[0], sorted(version.number for version in versions)
    about = BlindTest.objects.filter(adapter=version.adapter, numbers=numbers)
    scopes = scopes_in(request, version.project)
    context = {
        "version": version,
        "versions": versions,
        "others": without_bodies(version.adapter.versions.exclude(pk=version.pk), "")[:OFFERED],
        "here": address(version, numbers),
        **comparison_of(versions),
        "form": form,
        "problem": problem,
        "may_infer": Scope.INFER in scopes,
        "tests": [
            view_of(test, request.user.pk, Scope.INFER in scopes)
            for test in about.select_related("asked_by", "adapter__project").prefetch_related("votes")[:TESTS]
        ],
        "tally": tally(numbers, BlindVote.objects.filter(test__in=about).values_list("preferred", flat=True)),
    }
    return render(request, "registry/compare.html", context, status=422 if form.errors else 200)


def address(version: AdapterVersion, numbers: list[int]) -> str:
    """Return the URL of the comparison of a version with the other versions of these numbers."""
    query = QueryDict(mutable=True)
    query.setlist("to", [str(number) for number in numbers if number != version.number])
    return f"{reverse('compare', args=[version.adapter.ref, version.number])}?{query.urlencode()}"


def distance_maps(versions: list[AdapterVersion]) -> list[dict[str, Any]]:
    """Return a heat map for each version but the first, of the distance between its updates and the first one's.

    Raises Unavailable if files cannot be read, and TooMany if the project has too many child processes.
    """
    first, *others = versions
    return [{"from": first, "to": other, "heat": distance_map(updates(first, other))} for other in others]


def distance_map(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a heat map of the modules' cosine distances: 0 is the same direction, 1 a right angle or more.

    `rows` are those of `updates`. A module without a distance is drawn as 0.
    """
    shares = {row["module"]: min(1.0, row["cosine_distance"] or 0.0) for row in rows}
    heat = heat_map({module: round(1000 * share) for module, share in shares.items()})
    for cell, (module, share) in zip(heat["cells"], shares.items(), strict=True):
        cell["opacity"] = round(0.05 + 0.95 * share, 2)
        cell["title"] = f"{module}: cosine distance {share:.3f}"
    return heat


@login_required
@require_POST
def ask_all(request: HttpRequest, slug: str, number: int) -> HttpResponse:
    """Send each prompt to every version through the router, and store the answers for the blind vote.

    Then redirect to the comparison. If the form is wrong or the router does not answer, the page is shown again with
    the error. Raises Http404 if the person does not see the version, NotAllowed without scope infer, and Invalid as
    `chosen` does.
    """
    version = find_version(request, slug, number)
    require_scope(request, version.project, Scope.INFER)
    versions, form = chosen(version, request.GET), PromptsForm(request.POST)
    if not form.is_valid():
        return render_comparison(request, versions, form)
    token = token_for(request, version.project)
    try:
        ask_blindly(versions, **form.cleaned_data, token=token, by=actor_of(request))
    except Unavailable as error:
        return render_comparison(request, versions, form, error.detail)
    return redirect(address(version, [each.number for each in versions]) + "#answers")


@login_required
@require_POST
def vote(request: HttpRequest, pk: str) -> HttpResponse:
    """Store the person's only vote on a blind test and redirect to the comparison.

    Raises Http404 if the person does not see the test, NotAllowed without scope infer, and as `BlindTest.vote` does.
    """
    test = visible_or_404(request, BlindTest.objects.select_related("adapter__project"), "adapter__project", pk=pk)
    require_scope(request, test.project, Scope.INFER)
    vote_cast = test.vote(request.POST.get("letter", ""), by=actor_of(request))
    liked = "no difference" if vote_cast.preferred is None else f"v{vote_cast.preferred}"
    messages.success(request, f"Your vote is recorded: {liked}.")
    first = test.adapter.versions.select_related("adapter__project").get(number=test.numbers[0])
    return redirect(f"{address(first, test.numbers)}#test-{test.pk}")
