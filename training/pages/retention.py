"""Page actions on the retention class and legal hold of datasets and runs, and on two-person erasure of datasets."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect
from django.views.decorators.http import require_POST

from adapterhub.accounts.pages.tokens import SigningForm
from adapterhub.accounts.signer import client as signer
from adapterhub.api.pages import visible_or_404
from adapterhub.api.permissions import actor_of, require_scope, scopes_in
from adapterhub.core.tenancy import APPROVE, Scope
from registry.pages.forms import ReasonForm, cleaned
from training.models import Dataset, Erasure, TrainingRun
from training.models.retention import RetentionMixin, keep
from training.pages.forms import KeepingForm


def keeping(request: HttpRequest, dataset: Dataset) -> dict[str, Any]:
    """Return the template context of a dataset's retention section: its forms, and what the person may do."""
    scopes = scopes_in(request, dataset.project)
    return {
        "asked": dataset.erasures.select_related("signer").first(),
        "keeping": KeepingForm(initial={"retention": dataset.retention, "hold": bool(dataset.hold_reason)}),
        "erasing": ReasonForm(auto_id="erase_%s"),
        "signing": SigningForm(auto_id="sign_%s"),
        "may_keep": Scope.ADMIN in scopes,
        "may_sign": APPROVE in scopes,
    }


def led(request: HttpRequest, pk: int, scope: str) -> Dataset:
    """Return the dataset with this key.

    Raises Http404 if the person does not see it, and NotAllowed without the scope in its project.
    """
    dataset: Dataset = visible_or_404(request, Dataset.objects.select_related("project"), pk=pk)
    require_scope(request, dataset.project, scope)
    return dataset


@login_required
@require_POST
def keep_dataset(request: HttpRequest, pk: int) -> HttpResponse:
    """Change a dataset's retention class and legal hold, and redirect to it.

    Raises Http404 if the person does not see it, NotAllowed without scope admin, and Invalid for a form with errors.
    """
    dataset = led(request, pk, Scope.ADMIN)
    keep(dataset, by=actor_of(request), **cleaned(KeepingForm(request.POST)))
    return redirect("dataset", pk=pk)


def form_for(record: RetentionMixin, scopes: set[str]) -> KeepingForm | None:
    """Return the form for a record's retention class and legal hold; None without scope admin in `scopes`."""
    if Scope.ADMIN not in scopes:
        return None
    return KeepingForm(auto_id="keep_%s", initial={"retention": record.retention, "hold": bool(record.hold_reason)})


@login_required
@require_POST
def keep_run(request: HttpRequest, pk: UUID) -> HttpResponse:
    """Change a run's retention class and legal hold, and redirect to it.

    Raises Http404 if the person does not see it, NotAllowed without scope admin, and Invalid for a form with errors.
    """
    run: TrainingRun = visible_or_404(request, TrainingRun.objects.select_related("project"), pk=pk)
    require_scope(request, run.project, Scope.ADMIN)
    keep(run, by=actor_of(request), **cleaned(KeepingForm(request.POST)))
    return redirect("training-run", pk=pk)


@login_required
@require_POST
def erase_dataset(request: HttpRequest, pk: int) -> HttpResponse:
    """Request that a dataset's content be erased, which a second person then decides on, and redirect to the dataset.

    Raises Http404 if the person does not see it, NotAllowed without scope admin, Invalid without a reason, and as
    `Erasure.request` does.
    """
    dataset = led(request, pk, Scope.ADMIN)
    Erasure.request(dataset, by=actor_of(request), **cleaned(ReasonForm(request.POST)))
    return redirect("dataset", pk=pk)


@login_required
@require_POST
def decide_erasure(request: HttpRequest, pk: int, verb: str) -> HttpResponse:
    """Approve or reject a pending erasure as a second person, and redirect to the dataset.

    Raises Http404 without a pending erasure and for another verb, NotAllowed for a person who may not sign or has not
    signed in recently, and Conflict under a legal hold or before the retention period ends.
    """
    erasure = get_object_or_404(Erasure, dataset=led(request, pk, APPROVE), status="pending")
    if verb not in ("approve", "reject"):
        raise Http404
    signer.decide(erasure, verb, request, **cleaned(SigningForm(request.POST)))
    messages.success(request, f"The {erasure} is {erasure.get_status_display().lower()}.")
    return redirect("dataset", pk=pk)
