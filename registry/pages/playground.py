"""Playground page: send a prompt to any alias or version, and see which version and arm answered."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

from django import forms
from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import render
from django.template.loader import render_to_string

from adapterhub.accounts.models import Project
from adapterhub.api.pages import allowed, allowed_somewhere
from adapterhub.core.forms import Form
from adapterhub.core.references import parts_of
from adapterhub.core.tenancy import Scope
from registry.models import AdapterVersion, Alias
from registry.models.approved_versions import nameable
from registry.playground.client import MOST_MODELS, ask, stream, token_for

OFFERED = 300
NDJSON = "application/x-ndjson"


class PlaygroundForm(Form):
    """Form for a prompt and the models to send it to, named by alias or served name."""

    models = forms.CharField(
        max_length=600,
        widget=forms.TextInput(attrs={"list": "models", "autocomplete": "off"}),
        label="Model",
        help_text=f"An alias or a served name; up to {MOST_MODELS} separated by commas are compared side by side.",
    )
    prompt = forms.CharField(max_length=8000, widget=forms.Textarea(attrs={"rows": 6}), strip=False)
    max_tokens = forms.IntegerField(
        min_value=1, max_value=1024, initial=64, label="Longest answer, in tokens", help_text="Longer ones are cut off."
    )
    temperature = forms.FloatField(
        min_value=0, max_value=2, initial=0, help_text="0: always the likeliest token. Higher: more varied answers."
    )
    session = forms.CharField(
        max_length=200,
        required=False,
        label="Session key",
        help_text="Decides the arm of a rollout; the same key always gets the same arm.",
    )

    def clean_prompt(self) -> str:
        """Return the prompt with single line feeds, since a browser sends each line break as two characters."""
        return str(self.cleaned_data["prompt"]).replace("\r\n", "\n")

    def clean_models(self) -> list[str]:
        """Return the names of the models, each once. Raises ValidationError unless there are 1 to MOST_MODELS."""
        names = list(dict.fromkeys(name.strip() for name in self.cleaned_data["models"].split(",") if name.strip()))
        if not 1 <= len(names) <= MOST_MODELS:
            raise forms.ValidationError(f"Name 1 to {MOST_MODELS} models, separated by commas.")
        return names


@login_required
def playground(request: HttpRequest) -> HttpResponseBase:
    """Show the form, filled from the query string; a POST sends the prompt and shows the answers.

    A POST whose Accept header asks for lines of JSON, as the page's script does, gets the answers piece by piece.
    Raises NotAllowed for the POST of a person who has scope infer in no project, and NoProject as `allowed_somewhere`
    does.
    """
    projects = allowed(request, Scope.INFER).filter(archived_at=None)
    if request.method == "POST":
        projects = allowed_somewhere(request, Scope.INFER)
    names = offered(projects)
    initial = {"models": names[0]} if len(names) == 1 else {}
    form = PlaygroundForm(request.POST or None, initial=initial | request.GET.dict())
    wanted = request_of(request, projects, form) if form.is_valid() else None
    if wanted and request.headers.get("Accept") == NDJSON:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingHttpResponse(lines(*wanted), content_type=NDJSON, headers=headers)
    answers = ask(*wanted) if wanted else []
    context = {"form": form, "answers": answers, "offered": names, "may_infer": projects.exists()}
    return render(request, "registry/playground.html", context, status=422 if form.errors else 200)


def offered(projects: Any) -> list[str]:
    """Return the names to offer in the form: aliases first, then the OFFERED newest versions that callers may name.

    `projects` is a queryset of projects. An alias that several of them have is named as `project.alias`.
    """
    aliases = Alias.objects.filter(project__in=projects).values_list("name", "project__slug")
    count = Counter(name for name, _ in aliases)
    names = [name if count[name] == 1 else f"{project}.{name}" for name, project in aliases]
    served = nameable(AdapterVersion.objects.ready().filter(adapter__project__in=projects))
    return [*names, *served.values_list("served_name", flat=True)[:OFFERED]]


def lines(models: list[str], *rest: Any) -> Iterator[str]:
    """Yield lines of JSON: each model with its `place`, the pieces of its text, and the `html` of its whole answer.

    `rest` are the further arguments of `stream`.
    """
    for place, model in enumerate(models):
        yield json.dumps({"place": place, "model": model}) + "\n"
    for place, piece in stream(models, *rest):
        if isinstance(piece, str):
            yield json.dumps({"place": place, "text": piece}) + "\n"
        else:
            html = render_to_string("registry/_playground_answer.html", {"answer": piece})
            yield json.dumps({"place": place, "html": html}) + "\n"


def request_of(
    request: HttpRequest, projects: Any, form: PlaygroundForm
) -> tuple[list[str], str, str, dict[str, Any]] | None:
    """Return models, token, session key and body of the request.

    If no single project has all the models, an error is added to the form and None is returned.
    """
    fields = form.cleaned_data
    named = models_of(projects, fields["models"])
    if named is None:
        form.add_error("models", "No single project of yours has all these models: choose from the list.")
        return None
    project, models = named
    body = {name: fields[name] for name in ("prompt", "max_tokens", "temperature")}
    return models, token_for(request, project), fields["session"], body


def models_of(projects: Any, names: list[str]) -> tuple[Project, list[str]] | None:
    """Return the one project that has all the names, and the names as its router knows them.

    None if a name belongs to no project of the person, or if several projects fit; `eu.compliance` names one of them.
    """
    served = AdapterVersion.objects.filter(adapter__project__in=projects, served_name__in=names)
    known = {(name, key): name for name, key in served.values_list("served_name", "adapter__project")}
    aliases = Alias.objects.filter(project__in=projects, name__in=[parts_of(name)[1] for name in names])
    for name, slug, key in aliases.values_list("name", "project__slug", "project"):
        known |= {(name, key): name, (f"{slug}.{name}", key): name}
    owners = set.intersection(*({key for owned, key in known if owned == name} for name in names))
    if len(owners) != 1:
        return None
    project = projects.get(pk=owners.pop())
    return project, [known[name, project.pk] for name in names]
