"""Page of the memory estimator: the memory of every method, part by part, from a model's configuration."""

from __future__ import annotations

from typing import Any, cast

from django import forms
from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render

from adapterhub.charts import stacked
from adapterhub.core.errors import DomainError
from adapterhub.core.forms import Form
from registry.models import BaseModel
from training.models import TrainingRun
from training.models.hyperparameters import with_defaults
from training.planning import estimator_inputs, memory_estimator
from training.planning.memory_estimator import GB

TUNED = ("rank", "batch_size", "max_length", "devices", "galore_rank")
BAR = 600


class EstimateForm(Form):
    """Form for the base model, the devices and the hyperparameters to estimate for."""

    base_model = forms.ChoiceField(help_text="One of this installation, or a well-known one by its sizes.")
    device_gb = forms.FloatField(
        min_value=0.1, max_value=10_000, label="Memory of a device in GB", help_text="Of one GPU."
    )
    devices = forms.IntegerField(min_value=1, max_value=64, initial=1, help_text="GPUs that train together.")
    sharded = forms.BooleanField(required=False, help_text="Weights and optimiser state in shards, not copies.")
    rank = forms.IntegerField(min_value=1, max_value=512, initial=16, help_text="Of every module of a LoRA.")
    batch_size = forms.IntegerField(min_value=1, max_value=1024, initial=1, help_text="Sequences at once, a device.")
    max_length = forms.IntegerField(min_value=16, max_value=1_000_000, initial=2048, help_text="Tokens of a sequence.")
    galore_rank = forms.IntegerField(
        min_value=1, max_value=4096, initial=64, help_text="Of the projected gradients of GaLore."
    )
    recompute = forms.BooleanField(required=False, initial=True, help_text="Recompute activations: less memory.")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        ready = [(model.slug, model.slug) for model in BaseModel.objects.ready()]
        cast(forms.ChoiceField, self.fields["base_model"]).choices = [
            *ready,
            *((name, name) for name in memory_estimator.KNOWN),
        ]
        device = estimator_inputs.largest_device()
        self.fields["device_gb"].initial = round(device.memory_bytes / GB, 1) if device else 80

    def hyperparameters(self) -> dict[str, Any]:
        """Return all hyperparameters: those of the form, and the defaults of the others.

        Raises Invalid for a value out of its limits.
        """
        flags = {name: int(self.cleaned_data[name]) for name in ("sharded", "recompute")}
        return with_defaults({**{name: self.cleaned_data[name] for name in TUNED}, **flags})


@login_required
def estimates(request: HttpRequest) -> HttpResponse:
    """Show the form and, if it is filled in, the estimate of every method's memory."""
    form = EstimateForm(request.GET if "base_model" in request.GET else None)
    context: dict[str, Any] = {"form": form}
    if form.is_valid():
        try:
            context |= answer(form)
        except DomainError as error:
            form.add_error("base_model", error.detail)
    return render(request, "training/estimates.html", context, status=422 if form.errors else 200)


def answer(form: EstimateForm) -> dict[str, Any]:
    """Return the context of the estimate: a bar of memory for every method.

    Raises Invalid for an unknown model, one whose shape the estimator does not know, and a value out of its limits.
    """
    device_bytes = form.cleaned_data["device_gb"] * GB
    shape = estimator_inputs.named_shape(form.cleaned_data["base_model"])
    plan = estimator_inputs.plan_of(TrainingRun.Method.LORA, form.hyperparameters())
    estimates = estimator_inputs.estimates(shape, plan, device_bytes)
    names = list(dict.fromkeys(part["name"] for row in estimates for part in row["parts"]))
    rows = [bar_row(row, names, max(other["bytes"] for other in estimates), device_bytes) for row in estimates]
    return {"shape": shape, "adapter": shape.adapter_parameters(plan.rank), "rows": rows, "names": names}


def bar_row(row: dict[str, Any], names: list[str], most: float, device_bytes: float) -> dict[str, Any]:
    """Return the row with its parts in gigabytes and as pieces of a bar.

    `names` gives the order of the parts; `most` bytes fill the longest bar.
    """
    sizes = {part["name"]: part["bytes"] for part in row["parts"]}
    scale = BAR / max(most, device_bytes)
    pieces = [{**piece, "gb": piece["size"] / GB} for piece in stacked(sizes, names, scale)]
    label = TrainingRun.Method(row["method"]).label
    return {**row, "gb": row["bytes"] / GB, "pieces": pieces, "limit": round(device_bytes * scale, 1), "label": label}
