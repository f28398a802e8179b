"""Pages of evaluations: request one for a version, follow it, and cancel it."""

from __future__ import annotations

from typing import Any, cast

from django import forms
from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.views.decorators.http import require_POST

from adapterhub.api.listing import Listing
from adapterhub.api.pages import errors_on, followed, form_page, offer, reason_in, visible_or_404, visible_rows
from adapterhub.api.permissions import actor_of, require_scope, scopes_in
from adapterhub.core.forms import Form
from adapterhub.core.tenancy import Scope
from adapterhub.jobs.models import JobStatus
from registry.models import AdapterVersion, BaseModel, without_bodies
from registry.pages.adapters import find_version
from registry.pages.forms import OFFERED, PromptListField
from training.models import Dataset, Evaluation
from training.models.evaluation import MAX_PATTERN, MAX_PROMPT, MAX_PROMPTS
from training.models.lm_eval_task import offered


class EvaluationForm(Form):
    """A form for an evaluation of a version: on a dataset, on prompts, or by a task of lm-eval."""

    dataset = forms.ModelChoiceField(
        Dataset.objects.none(), required=False, empty_label="none", help_text="Its held-out rows are measured."
    )
    against = forms.ModelChoiceField(
        AdapterVersion.objects.none(),
        required=False,
        empty_label="the base model alone",
        help_text="Another version that is measured on the same rows and prompts.",
    )
    variant = forms.ModelChoiceField(
        BaseModel.objects.none(),
        required=False,
        label="Variant of the base model",
        empty_label="none",
        help_text="The loss that this copy of the base model costs is measured on the dataset, too.",
    )
    prompts = PromptListField(most=MAX_PROMPTS, longest=MAX_PROMPT, required=False)
    pattern = forms.CharField(
        max_length=MAX_PATTERN, required=False, help_text="A regular expression that is searched for in each answer."
    )
    task = forms.ChoiceField(
        required=False,
        label="Task of lm-eval",
        help_text="Asks the served version through the router. It is an evaluation of its own: leave the rest empty.",
    )

    def __init__(self, *args: Any, version: AdapterVersion, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        others = AdapterVersion.objects.ready().filter(
            adapter__project=version.project, base_digest=version.base_digest
        )
        others = without_bodies(others.exclude(pk=version.pk).select_related("adapter__project").order_by("-pk"), "")
        offer(self, dataset=Dataset.objects.filter(project=version.project, status="ready"), against=others)
        listed = [("", "the base model alone"), *((each.pk, str(each)) for each in others[:OFFERED])]
        cast(forms.Select, self.fields["against"].widget).choices = listed
        variants = BaseModel.objects.ready().filter(variant_of__digest=version.base_digest)
        if variants.exists():
            offer(self, variant=variants.select_related("variant_of"))
        else:
            del self.fields["variant"]
        if tasks := offered():
            cast(forms.ChoiceField, self.fields["task"]).choices = [("", "none"), *((task, task) for task in tasks)]
        else:
            del self.fields["task"]


@login_required
def evaluate_version(request: HttpRequest, slug: str, number: int) -> HttpResponse:
    """Show the form for an evaluation of a version, or queue the evaluation and redirect to it.

    Raises Http404 if the person does not see the version, and NotAllowed without scope train.
    """
    version = find_version(request, slug, number)
    require_scope(request, version.project, Scope.TRAIN)
    dataset = getattr(version, "run", None) and version.run.dataset_id
    form = EvaluationForm(request.POST or None, version=version, initial={"dataset": dataset})
    if form.is_valid():
        with errors_on(form):
            return redirect("evaluation", pk=Evaluation.launch(version, by=actor_of(request), **form.cleaned_data).pk)
    return form_page(
        request,
        form,
        title=f"Evaluate {version}",
        words="nats exact_match token_f1 forgetting",
        lead="It is measured beside its base model: held-out loss with paired intervals, exact match, token F1, "
        "forgetting, and answers to the prompts.",
        action="Queue the evaluation",
        back=reverse("version", args=[version.adapter.ref, version.number]),
        place=str(version),
    )


@login_required
def evaluations(request: HttpRequest) -> HttpResponse:
    """List the evaluations of the projects that the user sees."""
    related = ("dataset", "version__adapter__project", "against__adapter__project", "result")
    listing = Listing(
        request,
        visible_rows(request, Evaluation.objects.select_related(*related)),
        search=("version__adapter__slug", "version__served_name", "dataset__name", "task"),
        sorts={"requested": "created_at"},
        choices={"status": JobStatus.choices},
    )
    return render(request, "training/evaluations.html", listing.context())


def find_evaluation(request: HttpRequest, pk: str) -> Evaluation:
    """Return the evaluation in the URL. Raises Http404 if the person does not see it."""
    related = ("project", "dataset", "version__adapter__project", "against__adapter__project")
    job: Evaluation = visible_or_404(request, Evaluation.objects.select_related(*related), pk=pk)
    return job


@login_required
def evaluation(request: HttpRequest, pk: str) -> HttpResponse:
    """Show an evaluation and its results; a poll by htmx gets only the changing part.

    Raises Http404 if the person does not see it.
    """
    viewed = find_evaluation(request, pk)
    context = {
        "job": viewed,
        "evaluation": viewed.result,
        "may_train": Scope.TRAIN in scopes_in(request, viewed.project),
        "here": reverse("evaluation", args=[viewed.pk]),
    }
    return followed(request, "training/evaluation.html", "training/_evaluation_state.html", context, viewed.status)


@login_required
@require_POST
def cancel_evaluation(request: HttpRequest, pk: str) -> HttpResponse:
    """Cancel an evaluation and redirect to it.

    Raises Http404 if the person does not see it, and NotAllowed without scope train.
    """
    cancelled = find_evaluation(request, pk)
    require_scope(request, cancelled.project, Scope.TRAIN)
    cancelled.cancel(by=actor_of(request), reason=reason_in(request))
    messages.success(request, f"The evaluation is {cancelled.status}.")
    return redirect("evaluation", pk=pk)
