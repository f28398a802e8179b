"""The page for reducing a version to a plain LoRA of a rank that engines serve."""

from __future__ import annotations

from django import forms
from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse, QueryDict
from django.shortcuts import redirect, render

from adapterhub.api.pages import offer
from adapterhub.api.permissions import actor_of, require_scope
from adapterhub.core.forms import Form
from adapterhub.core.tenancy import Scope
from registry.models import AdapterVersion
from registry.pages.adapters import find_version
from training.models import Compression, Dataset

# The rank that is offered where no cluster of the base model names a limit.
USUAL_RANK = 64


class ReductionForm(Form):
    """Form for the choices of a reduction."""

    max_rank = forms.IntegerField(
        min_value=1, max_value=512, label="Highest rank", help_text="No module of the new version has a higher one."
    )
    dataset = forms.ModelChoiceField(
        Dataset.objects.none(),
        required=False,
        label="Measure the loss on",
        empty_label="a general text that comes with the product",
        help_text="Before and after, on the rows that the dataset holds out.",
    )
    keeps_merged = forms.BooleanField(
        required=False,
        label="Store the merged base model, too",
        help_text="The base model with the whole adapter merged into it, embeddings and heads included. An admin can "
        "register it as a base model of its own.",
    )

    def __init__(self, version: AdapterVersion, data: QueryDict | None = None) -> None:
        limit = version.adapter.base_model.highest_rank(version.project) or USUAL_RANK
        highest = version.max_rank or limit
        super().__init__(data, initial={"max_rank": min(limit, highest)})
        ready = Dataset.objects.filter(project=version.project, status="ready")
        offer(self, dataset=ready.order_by("name"))


@login_required
def reduce_version(request: HttpRequest, slug: str, number: int) -> HttpResponse:
    """Show the form for reducing the version; a POST queues the job and redirects to it.

    Raises Http404 if the person does not see the version, NotAllowed without scope train, and as `Compression.launch`
    does.
    """
    version = find_version(request, slug, number)
    require_scope(request, version.project, Scope.TRAIN)
    form = ReductionForm(version, request.POST) if request.method == "POST" else ReductionForm(version)
    if form.is_valid():
        fields = form.cleaned_data
        job = Compression.launch(
            version,
            {"max_rank": fields["max_rank"]},
            dataset=fields["dataset"],
            keeps_merged=fields["keeps_merged"],
            by=actor_of(request),
        )
        return redirect("compression", pk=job.pk)
    return render(request, "training/reduce.html", {"version": version, "form": form})
